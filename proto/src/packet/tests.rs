use proptest::prelude::*;

use super::*;
use crate::{Class, GroupKey, Locator, PlanId, RelayIndex, Tenant};

fn locator() -> impl Strategy<Value = Locator> {
    (0..u16::MAX, any::<u32>(), any::<u32>()).prop_map(|(relay, slot, generation)| Locator {
        relay: RelayIndex(relay),
        slot,
        generation,
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Media,
        Kind::Message,
        Kind::Control,
        Kind::EchoRequest,
        Kind::EchoReply,
    ])
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        locator().prop_map(Destination::Session),
        any::<u64>().prop_map(|key| Destination::Group(GroupKey(key))),
    ]
}

prop_compose! {
    fn link_header()(
        kind in kind(),
        (class, profile, tree, deflections) in (0_u8..4, 0_u8..4, 0_u8..4, 0_u8..4),
        (trace, path_change) in any::<(bool, bool)>(),
        hop_limit in 0_u8..16,
        (epoch, number) in any::<(u16, u32)>(),
        age_us in any::<u32>(),
        sender in locator(),
        destination in destination(),
        passed in prop::collection::vec(0..u16::MAX, 0..=MAX_PASSED),
        (uplink, flow, sequence) in any::<(u8, u32, u32)>(),
        (layer, tenant) in (0_u8..8, any::<u8>()),
    ) -> LinkHeader {
        let mut all = [RelayIndex::NONE; MAX_PASSED];
        for (slot, relay) in all.iter_mut().zip(passed) {
            *slot = RelayIndex(relay);
        }
        LinkHeader {
            kind,
            class: Class::from_bits(class),
            profile,
            tree,
            deflections,
            trace,
            path_change,
            hop_limit,
            plan: PlanId { epoch, number },
            age_us,
            sender,
            destination,
            passed: all,
            uplink,
            flow,
            sequence,
            layer,
            tenant: Tenant(tenant),
        }
    }
}

proptest! {
    #[test]
    fn a_link_header_comes_back_as_it_went(header in link_header()) {
        let mut bytes = [0xff; LinkHeader::LEN];
        header.encode(&mut bytes);
        prop_assert_eq!(LinkHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn an_access_header_comes_back_as_it_went(
        kind in kind(),
        class in 0_u8..4,
        (trace, path_change, group) in any::<(bool, bool, bool)>(),
        layer in 0_u8..8,
        (handle, flow, sequence, age_us) in any::<(u32, u32, u32, u32)>(),
    ) {
        let header = AccessHeader {
            kind,
            class: Class::from_bits(class),
            trace,
            path_change,
            group,
            layer,
            handle,
            flow,
            sequence,
            age_us,
        };
        let mut bytes = [0xff; AccessHeader::LEN];
        header.encode(&mut bytes);
        prop_assert_eq!(AccessHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn a_probe_comes_back_as_it_went(
        (discriminator, sequence, received, interval_us) in any::<(u32, u32, u32, u32)>(),
        (echo_discriminator, echo_sequence) in any::<(u32, u32)>(),
        (sent_us, echo_sent_us, echo_received_us) in any::<(u64, u64, u64)>(),
        (epoch, number) in any::<(u16, u32)>(),
        (state, said) in (0..5_usize, any::<[bool; 5]>()),
    ) {
        let states = [
            ProbeState::NotSaid,
            ProbeState::Unknown,
            ProbeState::Warming,
            ProbeState::Up,
            ProbeState::Down,
        ];
        let probe = Probe {
            discriminator,
            sequence,
            sent_us,
            echo_discriminator,
            echo_sequence,
            echo_sent_us,
            echo_received_us,
            received,
            interval_us,
            oldest_stamped: PlanId { epoch, number },
            state: states[state],
            in_use: said[0],
            answer: said[1],
            degraded_in: said[2],
            degraded_out: said[3],
            settling: said[4],
        };
        prop_assert_eq!(Probe::decode(&probe.encode()), Ok(probe));
    }

    #[test]
    fn a_relay_set_comes_back_as_it_went_in_the_shorter_form(
        relays in prop::collection::btree_set(0_u16..1_024, 0..200),
    ) {
        let set: RelaySet = relays.iter().copied().map(RelayIndex).collect();
        let mut bytes = vec![0xff; MAX_SET_LEN + 10];
        let length = set.encode(&mut bytes).expect("1,024 relays always fit");
        prop_assert!(length <= 2 + MAX_SET_BYTES.min(2 * relays.len()));
        prop_assert_eq!(set.encoded_len(), Some(length));
        prop_assert_eq!(RelaySet::decode(&bytes), Ok((set, length)));
    }

    #[test]
    fn a_relay_set_is_a_set(changes in prop::collection::vec((any::<bool>(), 0_u16..40), 0..100)) {
        let (mut set, mut model) = (RelaySet::EMPTY, std::collections::BTreeSet::new());
        for (insert, relay) in changes {
            if insert {
                prop_assert_eq!(set.insert(RelayIndex(relay)), model.insert(RelayIndex(relay)));
            } else {
                prop_assert_eq!(set.remove(RelayIndex(relay)), model.remove(&RelayIndex(relay)));
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
        }
        set.retain(|relay| relay.0 % 3 == 0);
        model.retain(|relay| relay.0 % 3 == 0);
        prop_assert!(set.iter().eq(model.iter().copied()));
    }

    #[test]
    fn a_trace_grows_in_place_up_to_its_room(ages in prop::collection::vec(any::<u32>(), 0..12)) {
        let mut bytes = Trace::default().encode();
        let mut hops = Vec::new();
        for (i, &age_us) in ages.iter().enumerate() {
            let hop = TraceRecord {
                relay: RelayIndex(i as u16),
                uplink: 3,
                deflected: i % 2 == 1,
                age_us,
            };
            let recorded = Trace::record(&mut bytes, hop);
            prop_assert_eq!(recorded, i < MAX_HOPS);
            if recorded {
                hops.push(hop);
            }
        }
        prop_assert_eq!(Trace::decode(&bytes), Ok(Trace { hops }));
    }

    #[test]
    fn no_bytes_make_a_parser_panic_or_a_set_that_is_larger_than_they_are(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = LinkHeader::decode(&bytes);
        let _ = AccessHeader::decode(&bytes);
        let _ = Probe::decode(&bytes);
        let _ = Trace::decode(&bytes);
        if let Ok((set, length)) = RelaySet::decode(&bytes) {
            prop_assert!(length <= bytes.len());
            prop_assert!(set.relays().len() <= 8 * length);
        }
    }
}

#[test]
fn what_a_probe_says_of_its_link_lies_where_it_is_documented() {
    let probe = Probe {
        state: ProbeState::Down,
        in_use: true,
        degraded_in: true,
        ..Probe::default()
    };
    let mut bytes = probe.encode();
    assert_eq!((bytes[54], bytes[55]), (4, 0b0101));
    // In words of a later version it says nothing.
    bytes[54] = 200;
    bytes[55] = 0xe0;
    assert_eq!(Probe::decode(&bytes), Ok(Probe::default()));
}

#[test]
fn a_relay_set_that_fits_neither_form_is_refused() {
    let set: RelaySet = (0..200).map(|i| RelayIndex(i * 300)).collect();
    assert_eq!(
        set.encode(&mut [0; MAX_SET_LEN]),
        Err(HeaderError::Field("a relay set is too long"))
    );
    assert_eq!(set.encoded_len(), None);
    let parts: Vec<RelaySet> = set.parts().collect();
    assert!(parts.iter().all(|part| part.encoded_len().is_some()));
    let all: RelaySet = parts.iter().flat_map(RelaySet::iter).collect();
    assert_eq!(
        (all.len(), &all),
        (parts.iter().map(RelaySet::len).sum(), &set)
    );
}

#[test]
fn a_packet_remembers_where_it_has_been() {
    let mut bytes = [0; LinkHeader::LEN];
    bytes[0] = VERSION << 4;
    let mut header = LinkHeader {
        passed: [RelayIndex::NONE; MAX_PASSED],
        ..LinkHeader::decode(&bytes).expect("all zeros are a header")
    };
    for relay in 1..=MAX_PASSED as u16 {
        assert!(!header.has_visited(RelayIndex(relay)));
        assert!(header.pass(RelayIndex(relay)));
        assert!(header.has_visited(RelayIndex(relay)));
    }
    assert!(!header.pass(RelayIndex(99)), "its memory is full");
    assert!(header.has_visited(RelayIndex(0)), "the origin counts");
}

#[test]
fn another_version_and_an_unknown_kind_are_named() {
    let mut bytes = [0; LinkHeader::LEN];
    bytes[0] = 2 << 4;
    assert_eq!(LinkHeader::decode(&bytes), Err(HeaderError::Version(2)));
    bytes[0] = VERSION << 4 | 15;
    assert_eq!(LinkHeader::decode(&bytes), Err(HeaderError::Kind(15)));
    assert_eq!(
        LinkHeader::decode(&bytes[..0]),
        Err(HeaderError::Short { needed: 1, got: 0 })
    );
}
