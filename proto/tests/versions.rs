//! Versions N and N−1 in one network: what one says, the other understands.

use std::collections::BTreeMap;

use prost::Message;
use tradewind_proto::control as now;

/// As the version before speaks.
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic
)] // generated
mod before {
    include!(concat!(env!("OUT_DIR"), "/tradewind.previous.rs"));
}

/// A message that the other version has written.
fn read<T: Message + Default>(written: &impl Message) -> T {
    T::decode(written.encode_to_vec().as_slice()).expect("it can be read")
}

/// A field as it travels: number, name, type, label, and which message or enum it is of.
type Field = (i32, String, i32, i32, String);

/// All fields of all messages of one version, and all values of its enums, by name.
fn fields(package: &str, folder: &str) -> BTreeMap<String, Vec<Field>> {
    let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
    let files =
        ["session", "relay", "control"].map(|name| format!("tradewind/{package}/{name}.proto"));
    let compiled = protox::compile(files, [folder]).expect("the schemas compile");
    let mut found = BTreeMap::new();
    let mut left = Vec::new();
    let mut enums = Vec::new();
    for file in compiled.file {
        left.extend(file.message_type.into_iter().map(|m| (String::new(), m)));
        enums.extend(file.enum_type.into_iter().map(|e| (String::new(), e)));
    }
    while let Some((prefix, message)) = left.pop() {
        let name = format!("{prefix}.{}", message.name());
        let list = message.field.iter().map(|field| {
            let of = field
                .type_name()
                .replace(&format!(".tradewind.{package}."), "");
            let (kind, label) = (field.r#type() as i32, field.label() as i32);
            (field.number(), field.name().to_owned(), kind, label, of)
        });
        found.insert(name.clone(), list.collect());
        left.extend(message.nested_type.into_iter().map(|m| (name.clone(), m)));
        enums.extend(message.enum_type.into_iter().map(|e| (name.clone(), e)));
    }
    for (prefix, kind) in enums {
        let list = kind.value.iter().map(|value| {
            let name = value.name().to_owned();
            (value.number(), name, 0, 0, String::new())
        });
        found.insert(format!("{prefix}.{}", kind.name()), list.collect());
    }
    found
}

#[test]
fn no_message_and_no_field_has_been_lost_or_means_something_else() {
    let new = fields("v1", "schema");
    let old = fields("previous", "schema/previous");
    assert!(old.len() > 50, "the schemas were not read");
    for (message, fields) in old {
        let present = new
            .get(&message)
            .unwrap_or_else(|| panic!("{message} is gone"));
        for field in fields {
            assert!(present.contains(&field), "{message}: {field:?} has changed");
        }
    }
}

fn plan_part() -> now::PlanPart {
    let tree = |next: u32, rules| now::TreeTable {
        next_hop: vec![0, next],
        uplink: vec![0, 1],
        cost_us: vec![0, 10_000],
        rules,
    };
    let backup = |relay: u32, rules| now::Backup {
        destination: 1,
        relays: vec![relay],
        cost_us: vec![20_000],
        rules,
    };
    now::PlanPart {
        plan: Some(now::PlanName {
            epoch: 3,
            number: 8,
        }),
        relays: vec![now::RelayInfo {
            index: 1,
            name: "oslo-1".to_owned(),
            uplinks: vec![now::UplinkInfo {
                number: 1,
                ..Default::default()
            }],
            ..Default::default()
        }],
        profiles: vec![now::ProfileTable {
            profile: 0,
            trees: vec![tree(1, 0), tree(0, 0), tree(0, 2)],
            backups: vec![backup(4, 0)],
            weights: vec![0, 0x0000_4080],
            restricted_backups: vec![backup(5, 2)],
            may_cross: vec![vec![1], vec![0], vec![1]],
            ..Default::default()
        }],
        selectors: vec![now::Selector {
            app: "clinic".to_owned(),
            group: String::new(),
            rules: 2,
        }],
    }
}

#[test]
fn a_relay_of_the_version_before_sees_the_first_tree_and_everybodys_backups() {
    let part: before::PlanPart = read(&plan_part());
    assert_eq!(
        part.plan.map(|name| (name.epoch, name.number)),
        Some((3, 8))
    );
    assert_eq!(part.relays[0].name, "oslo-1");
    let table = &part.profiles[0];
    assert_eq!(table.trees[0].next_hop, [0, 1]);
    assert_eq!(table.trees[0].cost_us, [0, 10_000]);
    let backups: Vec<_> = table.backups.iter().map(|b| &b.relays[..]).collect();
    assert_eq!(
        backups,
        [[4]],
        "backups of restricted rule sets stand elsewhere"
    );
}

#[test]
fn a_plan_of_the_version_before_has_one_rule_set_no_weights_and_no_costs_of_backups() {
    let part: now::PlanPart = read(&before::PlanPart {
        plan: Some(before::PlanName {
            epoch: 3,
            number: 8,
        }),
        relays: vec![before::RelayInfo {
            index: 1,
            ..Default::default()
        }],
        profiles: vec![before::ProfileTable {
            profile: 0,
            trees: vec![before::TreeTable {
                next_hop: vec![1],
                ..Default::default()
            }],
            backups: vec![before::Backup {
                destination: 1,
                relays: vec![1],
            }],
        }],
    });
    let table = &part.profiles[0];
    assert_eq!(
        (&table.trees[0].next_hop[..], table.trees[0].rules),
        (&[1][..], 0)
    );
    assert_eq!(table.backups[0].relays, [1]);
    assert!(table.backups[0].cost_us.is_empty() && table.weights.is_empty());
    assert!(part.selectors.is_empty() && part.relays[0].uplinks.is_empty());
}

#[test]
fn an_activation_of_the_version_before_is_of_all_flows_and_without_an_order() {
    let plan = Some(before::PlanName {
        epoch: 3,
        number: 8,
    });
    let activate: now::Activate = read(&before::Activate { plan });
    assert_eq!((activate.share_permille, activate.order), (0, 0));
    assert_eq!(activate.rest, None);
    // The other way round the plan is understood, and nothing of shares: a relay of the version
    // before stamps all of its flows with it.
    let activate: before::Activate = read(&now::Activate {
        plan: plan_part().plan,
        share_permille: 50,
        rest: plan_part().plan,
        order: 7,
    });
    assert_eq!(activate.plan, plan);
}

#[test]
fn reports_are_understood_both_ways_and_whole_when_nothing_else_is_said() {
    let state = before::link_state::State::Up as i32;
    let report: now::LinkReport = read(&before::LinkReport {
        sequence: 9,
        links: vec![before::LinkState {
            peer: "oslo-1".to_owned(),
            state,
            rtt_min_us: 20_000,
            raw_out_us: -5,
            raw_known: true,
            ..Default::default()
        }],
        ..Default::default()
    });
    assert!(!report.delta && report.demand.is_empty());
    let link = &report.links[0];
    assert_eq!(link.state(), now::link_state::State::Up);
    assert_eq!((link.rtt_min_us, link.raw_out_us), (20_000, -5));
    assert!(!link.degraded_in && !link.degraded_out);
    assert_eq!((link.loss_probes, link.raw_age_us), (0, 0));
    assert_eq!(link.peer_incarnation, 0);

    let report: before::LinkReport = read(&now::LinkReport {
        sequence: 9,
        links: vec![now::LinkState {
            peer: "oslo-1".to_owned(),
            state,
            degraded_out: true,
            drift_ppb: -30,
            ..Default::default()
        }],
        demand: vec![now::Demand {
            destination: 1,
            bytes: vec![1, 2, 3, 4],
        }],
        ..Default::default()
    });
    assert_eq!(report.links[0].state(), before::link_state::State::Up);
}

#[test]
fn what_a_relay_keeps_on_disk_survives_its_upgrade_and_its_downgrade() {
    let kept: now::HeldState = read(&before::HeldState {
        index: 4,
        epoch: 3,
        plan: Some(read(&plan_part())),
        ..Default::default()
    });
    assert_eq!((kept.index, kept.epoch), (4, 3));
    assert_eq!(kept.plan.and_then(|part| part.plan), plan_part().plan);
    assert_eq!((kept.stamping, kept.rest), (None, None));

    let kept: before::HeldState = read(&now::HeldState {
        index: 4,
        epoch: 3,
        plan: Some(plan_part()),
        rest: Some(plan_part()),
        ..Default::default()
    });
    assert_eq!((kept.index, kept.epoch), (4, 3));
    assert!(kept.plan.is_some());
}

#[test]
fn a_relay_that_says_nothing_of_uplinks_has_one() {
    let register: now::Register = read(&before::Register {
        name: "oslo-1".to_owned(),
        link_addresses: vec!["192.0.2.1:7444".to_owned()],
        incarnation: 5,
        ..Default::default()
    });
    assert_eq!(register.link_addresses.len(), 1);
    assert!(register.uplinks.is_empty());
    assert_eq!(register.incarnation, 5);
}
