//! Policies read, checked and compiled.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;

const FULL: &str = include_str!("../../policy.sample.toml");

fn names() -> Vec<String> {
    ["tokyo-1", "paris-1", "moscow-1", "sydney-1", "beijing-1"]
        .map(str::to_owned)
        .to_vec()
}

fn regions() -> Vec<String> {
    ["jp", "fr", "ru", "au", "cn"].map(str::to_owned).to_vec()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn policy(text: &str) -> Policy {
    Policy::from_toml(text, "p.toml").unwrap()
}

fn compiled(text: &str) -> Compiled {
    let (names, regions) = (names(), regions());
    let places = Places {
        names: &names,
        regions: &regions,
    };
    policy(text).compile(places, now())
}

/// The sample with its rules (`#key = …`, `#[[…]]`, no space) switched on; text stays comment.
fn switched_on() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rule) if !rule.starts_with([' ', '#']) => rule.to_owned(),
        _ => line.to_owned(),
    };
    FULL.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_is_the_default_and_its_examples_are_good() {
    assert_eq!(policy(FULL), Policy::default());
    let examples = policy(&switched_on());
    assert!(!examples.price.is_empty() && !examples.peak_only.is_empty());
    assert!(!examples.pin.is_empty() && !examples.capacity.is_empty());
    assert_eq!(
        examples.profiles,
        Profiles::default(),
        "the sample shows the defaults"
    );
    assert_eq!(
        policy(&examples.to_toml()),
        examples,
        "written and read again"
    );
    let json = serde_json::to_vec(&examples).unwrap();
    assert_eq!(Policy::from_json(&json).unwrap(), examples);
}

#[test]
fn the_last_price_that_fits_a_link_decides() {
    let compiled = compiled(
        "[[price]]\nregion = \"au\"\nper_gb = 0.1\n\
         [[price]]\nfrom = \"sydney-1\"\nto = \"tokyo-1\"\nboth_ways = false\nper_gb = 0.02\n\
         [[price]]\nuplink = 1\nper_gb = 0.5",
    );
    let (tokyo, paris, sydney) = (0, 1, 3);
    assert_eq!(compiled.price(tokyo, paris, 0), 0.0);
    assert_eq!(compiled.price(tokyo, sydney, 0), 0.1);
    assert_eq!(compiled.price(sydney, tokyo, 0), 0.02, "one way only");
    assert_eq!(compiled.price(sydney, tokyo, 1), 0.5);
    assert_eq!(compiled.problems, [] as [String; 0]);
}

#[test]
fn capacities_are_bytes_per_second_between_regions_both_ways() {
    let compiled =
        compiled("[[capacity]]\nfrom_region = \"jp\"\nto_region = \"fr\"\nrate = \"1Gbps\"");
    assert_eq!(compiled.capacity(0, 1, 3), Some(125e6));
    assert_eq!(compiled.capacity(1, 0, 0), Some(125e6));
    assert_eq!(compiled.capacity(0, 2, 0), None);
}

#[test]
fn bans_are_for_everybody_a_profile_or_those_whose_data_must_stay_away() {
    let compiled = compiled(
        "[[forbid_transit]]\nregions = [\"ru\"]\n\
         [[forbid_transit]]\nregions = [\"au\"]\nprofile = \"economy\"\n\
         [[forbid_transit]]\nrelays = [\"beijing-1\"]\napp = \"bank\"\n\
         [[forbid_transit]]\nregions = [\"jp\"]\nmode = \"observe\"",
    );
    assert_eq!(compiled.everybody, [false, false, true, false, false]);
    assert_eq!(compiled.by_profile[1], [false, false, false, true, false]);
    assert_eq!(compiled.restricted, [[false, false, false, false, true]]);
    let selector = |app: &str, group: &str, rules| tradewind_proto::control::Selector {
        app: app.into(),
        group: group.into(),
        rules,
    };
    assert_eq!(compiled.selectors, [selector("bank", "", 1)]);
    assert_eq!(
        compiled.observed[0].kind,
        ObservedKind::Forbid(vec![true, false, false, false, false])
    );
}

#[test]
fn a_packet_that_two_restrictions_are_about_keeps_to_both() {
    let compiled = compiled(
        "[[forbid_transit]]\nregions = [\"cn\"]\napp = \"bank\"\n\
         [[forbid_transit]]\nregions = [\"ru\"]\ngroup = \"board\"",
    );
    let first = &compiled.selectors[0];
    assert_eq!(
        (first.app.as_str(), first.group.as_str()),
        ("bank", "board")
    );
    let both = &compiled.restricted[first.rules as usize - 1];
    assert_eq!(*both, [false, false, true, false, true]);
    assert_eq!(compiled.selectors.len(), 3);
    assert_eq!(compiled.restricted.len(), 3);
}

#[test]
fn more_restricted_sets_than_a_plan_has_room_for_are_refused() {
    let rule = |region: &str, app: &str| {
        format!("[[forbid_transit]]\nregions = [\"{region}\"]\napp = \"{app}\"\n")
    };
    let three = rule("ru", "a") + &rule("cn", "b") + &rule("jp", "c");
    policy(&three);
    // The same set for another app needs no room.
    policy(&(three.clone() + &rule("cn", "d")));
    let error = Policy::from_toml(&(three + &rule("au", "d")), "p").unwrap_err();
    assert!(error.to_string().contains("has room for 3"), "{error}");
}

#[test]
fn a_pin_is_a_whole_path_and_a_ban_wins_over_it() {
    let compiled = compiled(
        "[[pin]]\nfrom = \"tokyo-1\"\nvia = [\"sydney-1\"]\nto = \"paris-1\"\nprofile = \"realtime\"\n\
         [[pin]]\nfrom = \"paris-1\"\nvia = [\"moscow-1\"]\nto = \"tokyo-1\"\n\
         [[forbid_transit]]\nregions = [\"ru\"]",
    );
    assert_eq!(compiled.pins, [vec![vec![0, 3, 1]], vec![]]);
    assert!(
        compiled.problems[0].contains("the ban wins"),
        "{:?}",
        compiled.problems
    );
}

#[test]
fn peak_only_links_are_off_outside_of_their_hours() {
    let rule = |hours: &str| {
        format!(
            "[[peak_only]]\nuplink = 1\nhours = \"{hours}\"\n\
             [[peak_only]]\nrelay = \"sydney-1\"\ndays = [\"thu\"]\nhours = \"{hours}\""
        )
    };
    let off = compiled(&rule("09:00-18:00"));
    assert!(off.is_off_hours(0, 1, 1) && !off.is_off_hours(0, 1, 0));
    assert_eq!(off.off_hours_relays, [false, false, false, true, false]);
    let on = compiled(&rule("00:00-01:00"));
    assert!(!on.is_off_hours(0, 1, 1));
    assert_eq!(on.off_hours_relays, [false; 5]);
}

#[test]
fn unknown_names_are_said_with_the_nearest_there_is() {
    let problems = policy(
        "[[pin]]\nfrom = \"tokio-1\"\nto = \"paris-1\"\n[[forbid_transit]]\nregions = [\"xx\"]",
    )
    .check_names(&names(), &regions());
    assert!(
        problems[0].contains("`from`") && problems[0].contains("`tokyo-1`"),
        "{problems:?}"
    );
    assert!(
        problems[1].contains("`regions`") && problems[1].contains("`xx`"),
        "{problems:?}"
    );
}

#[test]
fn rules_that_make_no_sense_are_refused_by_name() {
    for (text, words) in [
        (
            "[[price]]\nper_gb = 1.0",
            &["[[price]] number 1", "which links"][..],
        ),
        ("[[price]]\nuplink = 0\nper_gb = -1.0", &["per_gb"]),
        (
            "[[price]]\nuplink = 0\nper_gbb = 1.0",
            &["per_gbb", "`per_gb`"],
        ),
        ("[[price]]\nuplink = 0", &["per_gb"]),
        ("[[capacity]]\nuplink = 0\nrate = \"0bps\"", &["rate"]),
        ("[[capacity]]\nuplink = 0\nrate = \"fast\"", &["1Gbps"]),
        ("[[forbid_transit]]\napp = \"a\"", &["forbids nothing"]),
        (
            "[[forbid_transit]]\nregions = [\"x\"]\napp = \"a\"\nprofile = \"economy\"",
            &["not both"],
        ),
        (
            "[[forbid_transit]]\nregions = [\"x\"]\nmode = \"watch\"",
            &["enforce", "observe"],
        ),
        (
            "[[pin]]\nfrom = \"a\"\nvia = [\"b\", \"b\"]\nto = \"c\"",
            &["twice"],
        ),
        (
            "[[pin]]\nfrom = \"a\"\nvia = [\"b\", \"c\", \"d\", \"e\", \"f\"]\nto = \"g\"",
            &["at most 4"],
        ),
        (
            "[[peak_only]]\nhours = \"9-17\"\nuplink = 1",
            &["09:00-18:00"],
        ),
        (
            "[[peak_only]]\nhours = \"09:00-17:00\"\nuplink = 1\ntime_zone = \"Tokyo\"",
            &["Asia/Tokyo"],
        ),
        ("[[peak_only]]\nhours = \"09:00-17:00\"", &["`relay`"]),
        (
            "[profiles.economy]\nlatency_factor = 0.5",
            &["latency_factor"],
        ),
        ("[weights]\nload_knee = 1.5", &["load_knee"]),
    ] {
        let error = Policy::from_toml(text, "p.toml").unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}

#[test]
fn a_pin_replaces_the_one_between_the_same_relays() {
    let mut policy = Policy::default();
    let pin = |via: &[&str]| Pin {
        from: "a".into(),
        via: via.iter().map(|&name| name.to_owned()).collect(),
        to: "b".into(),
        profile: None,
        mode: Mode::Enforce,
    };
    policy.add_pin(pin(&["c"]));
    policy.add_pin(pin(&["d"]));
    assert_eq!(policy.pin, [pin(&["d"])]);
    assert_eq!(policy.remove_pins("a", "b", Some(ProfileName::Economy)), 0);
    assert_eq!(policy.remove_pins("a", "b", None), 1);
}
