//! The state machine against a path made of a rate, a delay, a queue and a loss pattern.

use super::*;

const PACKET: u64 = 1_200;
const ACK_EVERY: u32 = 10;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// 50 Mbit/s, floor 10.
fn limits(capacity: Option<f64>) -> Limits {
    Limits {
        capacity,
        floor: 1.25e6,
        start: capacity.unwrap_or(6.25e6),
    }
}

/// One bottleneck, as the sender sees it, in steps of a millisecond.
struct Path {
    control: Control,
    now: Duration,
    /// Bytes per second.
    carries: f64,
    base: Duration,
    /// Bytes the queue holds before it drops.
    room: f64,
    queue: f64,
    /// Part of all packets that is lost at random, spread evenly.
    loss: f64,
    owed: f64,
    /// Bytes per second the users offer.
    offered: f64,
    backlog: f64,
    /// Keeps the queue full whatever the link does, up to this many bytes.
    others: f64,
    /// Bytes under way: when they will be acknowledged, when they were sent, whether they arrive.
    flying: std::collections::VecDeque<(Duration, Duration, bool)>,
    arrived: u64,
    longest_wait: Duration,
}

impl Path {
    fn new(limits: Limits, carries: f64, base: Duration) -> Self {
        Self {
            control: Control::new(limits, PACKET as u16, ACK_EVERY),
            now: Duration::ZERO,
            carries,
            base,
            room: carries * 0.25,
            queue: 0.0,
            loss: 0.0,
            owed: 0.0,
            offered: f64::INFINITY,
            backlog: 0.0,
            others: 0.0,
            flying: std::collections::VecDeque::new(),
            arrived: 0,
            longest_wait: Duration::ZERO,
        }
    }

    /// Bytes per second that arrived over this time.
    fn run(&mut self, time: Duration) -> f64 {
        let (end, before) = (self.now + time, self.arrived);
        self.longest_wait = Duration::ZERO;
        while self.now < end {
            self.now += ms(1);
            self.queue = (self.queue - self.carries / 1e3).max(self.others);
            self.acknowledge();
            self.send();
        }
        (self.arrived - before) as f64 / time.as_secs_f64()
    }

    fn acknowledge(&mut self) {
        // The peer waits for ten.
        let tenth = self.flying.get(ACK_EVERY as usize - 1);
        if tenth.is_none_or(|packet| packet.0 > self.now) {
            return;
        }
        let smoothed = self.base + self.wait();
        while let Some(&(at, sent, arrives)) = self.flying.front()
            && at <= self.now
        {
            self.flying.pop_front();
            if arrives {
                self.arrived += PACKET;
                self.control.acknowledged(self.now, sent, PACKET, smoothed);
            } else {
                self.control.lost(sent, PACKET);
            }
        }
        let in_flight = self.flying.len() as u64 * PACKET;
        self.control.batch_ends(self.now, in_flight);
    }

    fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.queue / self.carries)
    }

    fn send(&mut self) {
        self.backlog = (self.backlog + self.offered / 1e3).min(1e6);
        while self.backlog >= PACKET as f64
            && (self.flying.len() as u64 + 1) * PACKET < self.control.window()
        {
            self.backlog -= PACKET as f64;
            self.owed += self.loss;
            let mut arrives = true;
            if self.owed >= 1.0 {
                self.owed -= 1.0;
                arrives = false;
            }
            if self.queue + PACKET as f64 > self.room.max(self.others + self.carries / 1e3) {
                arrives = false;
            } else {
                self.queue += PACKET as f64;
            }
            self.longest_wait = self.longest_wait.max(self.wait());
            let at = self.now + self.base + self.wait();
            self.flying.push_back((at, self.now, arrives));
        }
    }
}

#[test]
fn a_link_begins_with_what_it_is_configured_to_carry() {
    let control = Control::new(limits(Some(12.5e6)), 1_200, ACK_EVERY);
    assert_eq!(control.window(), 2_500_000, "100 Mbit/s for 200 ms");
    let mut path = Path::new(limits(Some(12.5e6)), 125e6, ms(100));
    path.run(ms(300));
    let first = path.run(ms(500));
    assert!((first / 12.5e6 - 1.0).abs() < 0.1, "{first}");
}

#[test]
fn the_average_is_the_capacity_also_on_short_paths() {
    for base in [5, 20, 100, 250] {
        let mut path = Path::new(limits(Some(6.25e6)), 125e6, ms(base));
        path.run(ms(5_000));
        let rate = path.run(ms(10_000));
        assert!((0.93..1.05).contains(&(rate / 6.25e6)), "{base} ms: {rate}");
    }
}

#[test]
fn a_link_of_unknown_capacity_finds_what_the_path_carries_without_filling_its_queue() {
    for base in [20, 100, 250] {
        let mut path = Path::new(limits(None), 25e6, ms(base));
        path.run(ms(25_000));
        let rate = path.run(ms(10_000));
        assert!(rate > 0.9 * 25e6, "{base} ms: {rate}");
        assert!(
            path.longest_wait < 2 * target(ms(base)),
            "{base} ms: {:?}",
            path.longest_wait
        );
        assert!(!path.control.is_competing());
    }
}

#[test]
fn too_high_a_start_drains_within_seconds() {
    let mut path = Path::new(limits(None), 2.5e6, ms(80));
    path.run(ms(3_000));
    let rate = path.run(ms(10_000));
    assert!(rate > 0.85 * 2.5e6, "{rate}");
    assert!(path.longest_wait < ms(25), "{:?}", path.longest_wait);
}

#[test]
fn loss_without_waiting_changes_nothing_below_five_percent() {
    for loss in [0.01, 0.03, 0.045] {
        let mut path = Path::new(limits(Some(6.25e6)), 12.5e6, ms(250));
        path.loss = loss;
        path.run(ms(5_000));
        let rate = path.run(ms(20_000));
        assert!(rate > 0.9 * 6.25e6, "{loss}: {rate}");
    }
}

#[test]
fn heavy_loss_leads_down_to_the_floor_and_no_further() {
    let mut path = Path::new(limits(Some(6.25e6)), 12.5e6, ms(100));
    path.loss = 0.3;
    path.run(ms(10_000));
    assert_eq!(path.control.rate(), 1.25e6);
    let rate = path.run(ms(10_000));
    assert!(rate > 0.7 * 1.25e6 * 0.95, "{rate}");
    path.loss = 0.0;
    path.run(ms(20_000));
    assert!(path.run(ms(5_000)) > 0.9 * 6.25e6, "and back");
}

#[test]
fn a_policer_that_drops_without_delay_is_met_within_some_percent() {
    let mut path = Path::new(limits(None), 3.75e6, ms(50));
    path.room = 20.0 * PACKET as f64;
    path.run(ms(10_000));
    let sent = path.control.rate();
    let rate = path.run(ms(10_000));
    assert!(rate > 0.85 * 3.75e6, "{rate}");
    assert!(sent < 1.2 * 3.75e6, "{sent}");
}

#[test]
fn the_floor_is_a_rate_also_when_others_keep_the_queue_full() {
    let mut path = Path::new(limits(Some(6.25e6)), 6.25e6, ms(80));
    path.run(ms(2_000));
    // 240 of the queue's 250 ms are somebody else's packets.
    path.others = 6.25e6 * 0.24;
    let rate = path.run(ms(20_000));
    assert!(rate > 0.95 * 1.25e6, "{rate}");
}

#[test]
fn a_link_competes_with_whoever_fills_the_queue_and_yields_again_when_they_are_gone() {
    let mut path = Path::new(limits(None), 6.25e6, ms(80));
    path.run(ms(5_000));
    path.others = 6.25e6 * 0.1;
    path.run(ms(8_000));
    assert!(path.control.is_competing());
    path.others = 0.0;
    path.run(ms(25_000));
    assert!(!path.control.is_competing());
    path.run(ms(5_000));
    assert!(path.longest_wait < ms(25), "{:?}", path.longest_wait);
}

#[test]
fn users_who_send_little_neither_open_the_window_nor_close_it() {
    let mut path = Path::new(limits(None), 25e6, ms(100));
    path.offered = 3e6;
    path.run(ms(2_000));
    let before = path.control.rate();
    path.run(ms(60_000));
    assert_eq!(path.control.rate(), before);
    // Somebody else's queue, and still they send no more than half of what they may.
    path.others = 25e6 * 0.05;
    path.run(ms(5_000));
    assert_eq!(path.control.rate(), before);
}

#[test]
fn an_acknowledgement_held_back_for_want_of_packets_is_not_taken_for_a_queue() {
    let mut control = Control::new(limits(None), 1_200, ACK_EVERY);
    let mut now = ms(0);
    for packet in 0..2_000 {
        now += ms(100);
        // Every third is acknowledged 50 ms late.
        let held = if packet % 3 == 0 { ms(50) } else { ms(0) };
        control.acknowledged(now, now - ms(20) - held, 200, ms(20));
        control.batch_ends(now, 0);
    }
    assert_eq!(control.rate(), 6.25e6);
}

#[test]
fn marks_of_the_network_count_as_waiting() {
    let mut path = Path::new(limits(None), 25e6, ms(50));
    path.run(ms(1_000));
    let before = path.control.rate();
    for _ in 0..20 {
        path.control.marked();
        path.run(ms(50));
    }
    assert!(path.control.rate() < 0.8 * before);
}

#[test]
fn an_outage_halves_the_rate_once_and_never_goes_below_the_floor() {
    let mut control = Control::new(limits(Some(6.25e6)), 1_200, ACK_EVERY);
    control.outage(ms(1_000), ms(500));
    control.outage(ms(1_001), ms(900));
    assert_eq!(control.rate(), 3.125e6);
    for second in 2..10 {
        control.outage(ms(second * 1_000), ms(second * 1_000 - 100));
    }
    assert_eq!(control.rate(), 1.25e6);
}
