use super::*;

/// 100 calls and some pictures: 55 % of 50 Mbit/s in payload.
const SOME: Work = Work::Calls {
    calls: 100,
    videos: 14,
};
/// 150 %.
const TOO_MANY: Work = Work::Calls {
    calls: 100,
    videos: 46,
};

fn scene(control: Control, work: Work, loss: f64, rtt_ms: u64) -> Scene {
    Scene {
        control,
        work,
        beside_tcp: false,
        loss,
        rtt_ms,
        mbps: 50.0,
        buffer_ms: 250,
        configured: true,
        warm_up_s: 3,
        measure_s: 4,
        seed: 1,
    }
}

fn played(scene: &Scene) -> Outcome {
    let outcome = play(scene).unwrap();
    println!("{scene:?}\n{outcome:?}");
    assert_eq!(outcome.broken, None);
    outcome
}

#[test]
fn at_three_percent_loss_and_250_ms_calls_lose_three_percent_and_not_all_but_one() {
    let ours = played(&scene(Control::Tradewind, SOME, 0.03, 250));
    assert!(ours.delivered.unwrap() > 0.95, "what the path lets through");
    assert!(ours.queue_p99_ms < 5.0);
    let cubic = played(&scene(Control::Cubic, SOME, 0.03, 250));
    assert!(cubic.delivered.unwrap() < 0.1);
}

#[test]
fn too_many_calls_fill_the_path_but_not_its_queue() {
    let ours = played(&scene(Control::Tradewind, TOO_MANY, 0.0, 80));
    assert!(ours.goodput_mbps > 45.0);
    assert!(ours.queue_p99_ms < 20.0);
    let cubic = played(&scene(Control::Cubic, TOO_MANY, 0.0, 80));
    assert!(cubic.queue_p99_ms > 200.0, "as deep as it is");
}

#[test]
fn an_unknown_path_of_less_than_the_start_is_found_without_its_queue_staying_full() {
    let outcome = played(&Scene {
        mbps: 20.0,
        configured: false,
        ..scene(Control::Tradewind, TOO_MANY, 0.01, 80)
    });
    assert!(outcome.goodput_mbps > 17.0);
    assert!(outcome.queue_p99_ms < 25.0);
}

#[test]
fn beside_tcp_a_link_keeps_more_than_its_floor_and_leaves_tcp_its_part() {
    let outcome = played(&Scene {
        beside_tcp: true,
        warm_up_s: 8,
        measure_s: 12,
        ..scene(Control::Tradewind, Work::Bulk, 0.0, 80)
    });
    // The floor is 10 Mbit/s with headers.
    assert!(outcome.goodput_mbps > 9.5, "the floor");
    assert!(outcome.tcp_mbps.unwrap() > 10.0);
}

#[test]
fn calls_beside_tcp_have_their_floor_while_the_queue_is_full() {
    let outcome = played(&Scene {
        beside_tcp: true,
        warm_up_s: 4,
        measure_s: 6,
        ..scene(Control::Tradewind, SOME, 0.0, 20)
    });
    assert!(outcome.queue_p50_ms > 100.0, "TCP fills it");
    assert!(outcome.goodput_mbps > 9.5);
}

#[test]
fn the_same_scene_has_the_same_outcome() {
    let scene = Scene {
        warm_up_s: 1,
        measure_s: 2,
        ..scene(Control::Tradewind, Work::Bulk, 0.02, 40)
    };
    let [one, two] = [played(&scene), played(&scene)];
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}
