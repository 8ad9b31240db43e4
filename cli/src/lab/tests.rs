//! Whole labs in virtual time.

use std::{path::PathBuf, time::Duration};

use clap::Parser as _;

use super::{Report, failures, measure, options::Scenario};

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    args: super::LabArgs,
}

/// Between `perth` and `vladivostok` the way over `hong kong` is far shorter than the direct one,
/// and over `tokyo` it is nearly as short; `hong kong` and `moscow` are not linked.
const MATRIX: &str = "\
x,perth,vladivostok,hong kong,tokyo,moscow
perth,0,498,94,120,300
vladivostok,490,0,57,40,110
hong kong,96,57,0,50,
tokyo,118,42,50,0,180
moscow,300,110,,180,0
";

fn scenario(options: &[&str]) -> Scenario {
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("matrix.csv");
    std::fs::write(&file, MATRIX).unwrap();
    let line = [
        &["lab", "--virtual", "--matrix", file.to_str().unwrap()],
        options,
    ]
    .concat();
    Scenario::new(&Program::parse_from(line).args).unwrap()
}

fn lab(options: &[&str]) -> Report {
    measure(&scenario(options), false).expect("the lab runs")
}

fn nothing_is_lost_doubled_or_reordered(report: &Report) {
    let summary = &report.summary;
    assert!(summary.messages_sent > 0);
    assert_eq!(summary.messages_delivered, summary.messages_sent);
    assert_eq!(summary.failures, [].into());
    assert_eq!(
        (
            summary.messages_failed,
            summary.duplicates,
            summary.reordered
        ),
        (0, 0, 0)
    );
}

#[test]
fn packets_take_the_shorter_way_and_all_arrive() {
    let report = lab(&["--duration", "6s"]);
    nothing_is_lost_doubled_or_reordered(&report);
    let summary = &report.summary;
    assert_eq!(summary.media_delivered, summary.media_sent);
    assert!(summary.captured.unwrap() > 0.97, "{:?}", summary.captured);
    assert!(report.run.startup_s < 10.0, "{}", report.run.startup_s);
    assert_eq!(report.pairs.len(), 20);
    let pair = &report.pairs[0];
    assert_eq!(
        (pair.from.as_str(), pair.to.as_str()),
        ("perth", "vladivostok")
    );
    assert_eq!(pair.path, ["perth", "hong kong", "vladivostok"]);
    let measured = pair.overlay_ms_p50.unwrap();
    assert!((152.0..154.0).contains(&measured), "{measured}");
    // Without a link of their own two places reach each other all the same.
    let unlinked = report
        .pairs
        .iter()
        .find(|pair| pair.from == "hong kong" && pair.to == "moscow")
        .unwrap();
    assert_eq!(unlinked.direct_ms, None);
    assert_eq!(unlinked.path, ["hong kong", "vladivostok", "moscow"]);
    assert!((unlinked.overlay_ms_p50.unwrap() - 167.0).abs() < 1.0);
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let run = |seed| {
        let mut report = lab(&["--duration", "3s", "--seed", seed, "--relays", "4"]);
        report.run.wall_s = 0.0;
        report.matrix = String::new();
        serde_json::to_string(&report).unwrap()
    };
    assert_eq!(run("5"), run("5"));
    assert_ne!(run("5"), run("6"));
}

#[test]
fn when_a_link_in_use_is_cut_traffic_goes_another_way_and_every_message_arrives() {
    let cut = ["--duration", "8s", "--cut", "hong-vlad@3s"];
    let report = lab(&cut);
    nothing_is_lost_doubled_or_reordered(&report);
    assert_eq!(
        report.pairs[0].path,
        ["perth", "tokyo", "vladivostok"],
        "the link is cut to the end"
    );
    assert!(report.summary.plan_updates > 0);
    assert_eq!(report.faults[0].what, "cut hong kong - vladivostok");
}

#[test]
fn when_a_relay_is_killed_its_client_goes_elsewhere_and_messages_arrive() {
    let report = lab(&["--duration", "10s", "--kill", "hong@3s"]);
    nothing_is_lost_doubled_or_reordered(&report);
    for pair in &report.pairs {
        assert!(
            !pair.path.contains(&"hong kong".to_owned()),
            "{:?} is dead",
            pair.path
        );
    }
}

#[test]
fn when_a_relay_is_drained_nothing_falls_silent_but_its_clients_for_a_moment() {
    let report = lab(&["--duration", "10s", "--drain", "hong@3s"]);
    nothing_is_lost_doubled_or_reordered(&report);
    assert_eq!(report.pairs[0].path, ["perth", "tokyo", "vladivostok"]);
    let summary = &report.summary;
    assert!(summary.failover_flows > 0 && summary.session_flows > 0);
    assert_eq!(summary.failover_unrouted, 0);
    // 20 ms apart, and what the other way takes longer.
    let gap = summary.failover_gap_ms_max.unwrap();
    assert!(gap < 60.0, "{gap}");
}

#[test]
fn the_busiest_transit_relay_is_found_and_flows_over_it_go_another_way() {
    let report = lab(&["--duration", "8s", "--kill", "busiest@3s"]);
    nothing_is_lost_doubled_or_reordered(&report);
    let fault = &report.faults[0];
    // Perth, Vladivostok and Moscow are linked with each other over it.
    assert_eq!(
        fault.what,
        "kill the busiest transit relay: kill vladivostok"
    );
    let summary = &report.summary;
    assert!(summary.failover_flows > 0);
    assert_eq!(summary.failover_unrouted, 0);
    let gap = summary.failover_gap_ms_max.unwrap();
    assert!((20.0..1_000.0).contains(&gap), "{gap}");
    // The client of the killed relay had to find another edge.
    assert!(summary.session_flows > 0);
    assert!(summary.session_gap_ms_p50 > summary.failover_gap_ms_p50);
}

#[test]
fn a_relay_that_is_started_anew_carries_traffic_again() {
    let report = lab(&[
        "--duration",
        "14s",
        "--kill",
        "hong@2s",
        "--restart",
        "hong@4s",
    ]);
    nothing_is_lost_doubled_or_reordered(&report);
    assert_eq!(report.pairs[0].path, ["perth", "hong kong", "vladivostok"]);
}

#[test]
fn nothing_is_lost_by_the_death_of_the_controller_and_a_new_one_plans_on() {
    let dead = lab(&["--duration", "5s", "--kill", "controller@0s"]);
    nothing_is_lost_doubled_or_reordered(&dead);
    assert_eq!(dead.summary.media_delivered, dead.summary.media_sent);
    assert_eq!(dead.summary.plan_updates, 0);
    let again = lab(&[
        "--duration",
        "12s",
        "--kill",
        "controller@0s",
        "--restart",
        "controller@2s",
        "--cut",
        "hong-vlad@7s",
    ]);
    nothing_is_lost_doubled_or_reordered(&again);
    assert!(again.summary.plan_updates > 0);
    assert_eq!(again.pairs[0].path, ["perth", "tokyo", "vladivostok"]);
}

#[test]
fn a_link_that_works_far_worse_is_left_and_taken_again_when_it_is_healed() {
    let brownout = ["--brownout", "hong-vlad@2s:40%", "--duration"];
    let worse = lab(&[&brownout[..], &["10s"]].concat());
    nothing_is_lost_doubled_or_reordered(&worse);
    assert_eq!(worse.pairs[0].path, ["perth", "tokyo", "vladivostok"]);
    let healed = lab(&[&brownout[..], &["80s", "--heal", "hong-vlad@10s"]].concat());
    assert_eq!(healed.pairs[0].path, ["perth", "hong kong", "vladivostok"]);
}

#[test]
fn chaos_is_decided_by_the_seed_and_costs_no_message() {
    let run = |seed| {
        let line = [
            "--chaos",
            "--users",
            "25",
            "--duration",
            "12s",
            "--seed",
            seed,
        ];
        let mut report = lab(&line);
        let summary = &report.summary;
        assert!(summary.messages_sent > 100, "{}", summary.messages_sent);
        assert_eq!(
            summary.messages_sent,
            summary.messages_delivered + summary.failures.values().sum::<u64>()
        );
        let wrong = (summary.messages_lost, summary.duplicates, summary.reordered);
        assert_eq!((wrong, &report.violations), ((0, 0, 0), &Vec::new()));
        assert!(report.faults.len() >= 4);
        report.run.wall_s = 0.0;
        report.matrix = String::new();
        serde_json::to_string(&report).unwrap()
    };
    assert_eq!(run("3"), run("3"));
    assert_ne!(run("3"), run("4"));
}

#[test]
fn single_failures_one_after_the_other_are_all_routed_around() {
    let scenario = scenario(&["--failures", "4", "--without-controller"]);
    let report = failures::measure(&scenario, false).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["failures"].as_array().unwrap().len(), 4);
    assert!(json["all"]["flows"].as_u64().unwrap() > 0);
    assert_eq!(json["all"]["unrouted"], 0);
}

#[test]
fn places_that_are_linked_by_one_chain_only_reach_the_controller_and_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chain.csv");
    std::fs::write(
        &file,
        "x,a,b,c,d\na,0,10,,\nb,10,0,10,\nc,,10,0,10\nd,,,10,0\n",
    )
    .unwrap();
    let line = ["lab", "--virtual", "--duration", "3s", "--matrix"];
    let line = [&line[..], &[file.to_str().unwrap()]].concat();
    let report = measure(
        &Scenario::new(&Program::parse_from(line).args).unwrap(),
        false,
    )
    .unwrap();
    nothing_is_lost_doubled_or_reordered(&report);
    let ends = &report.pairs[2];
    assert_eq!(ends.path, ["a", "b", "c", "d"]);
    assert_eq!((ends.direct_ms, ends.optimal_ms), (None, Some(30.0)));
    assert_eq!(report.summary.captured, None);
}

#[test]
fn losses_on_links_lose_media_and_no_message() {
    let report = lab(&["--duration", "6s", "--loss", "3", "--jitter", "2ms"]);
    nothing_is_lost_doubled_or_reordered(&report);
    let lost = report.summary.media_sent - report.summary.media_delivered;
    assert!(lost > 0, "3 % per link lose something");
    assert_eq!(report.run.duration_s, Duration::from_secs(6).as_secs_f64());
}

/// What groups must do whether something fails or not.
fn groups_are_whole(report: &Report) -> &super::group_record::GroupSummary {
    assert_eq!(report.violations, []);
    let groups = report.summary.groups.as_ref().unwrap();
    assert!(groups.group_messages_sent > 0 && groups.copies_minimum > 0);
    assert_eq!(groups.copies_sent, groups.copies_minimum);
    assert_eq!((groups.group_duplicates, groups.group_reordered), (0, 0));
    groups
}

#[test]
fn a_message_to_a_group_crosses_every_link_once_and_comes_to_all_members() {
    let report = lab(&["--duration", "6s", "--groups", "4", "--members", "9"]);
    nothing_is_lost_doubled_or_reordered(&report);
    let groups = groups_are_whole(&report);
    assert_eq!(groups.copies_excluded, 0);
    assert_eq!(groups.group_messages_failed, 0);
    assert_eq!(groups.group_deliveries, groups.group_deliveries_expected);
    assert_eq!(groups.group_media_deliveries, groups.group_media_expected);
    assert_eq!((groups.group_gaps, groups.group_fetches), (0, 0));
    // Several members at one place cost one copy: four links lead to all places.
    assert!(groups.copies_sent <= 4 * groups.group_messages_sent * 2);
    assert!(groups.group_deliveries > groups.copies_sent);
}

#[test]
fn members_of_a_killed_edge_fetch_what_they_missed() {
    let report = lab(&[
        "--duration",
        "14s",
        "--groups",
        "4",
        "--members",
        "9",
        "--kill",
        "hong kong@4s",
    ]);
    let groups = groups_are_whole(&report);
    assert!(groups.group_fetches > 0);
    assert_eq!(groups.group_deliveries, groups.group_deliveries_expected);
}
