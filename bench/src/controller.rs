//! `tradewind-bench controller`: what the controller's state machine takes, by the number of relays.
//!
//! Relays in full mesh that do as they should: they register, report everything once and then what
//! has moved, and acknowledge plans. No sockets, no TLS, and time is made up; what is measured is
//! how long each call keeps a processor, and with it the lock that all relays' messages wait for.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;
use serde_json::json;
use tradewind_controller::{
    network::{Action, ConnectionId, Network, NetworkConfig},
    state::SavedNetwork,
};
use tradewind_host::{Host, OsHost};
use tradewind_proto::{
    control::{
        ControllerToRelay, LinkReport, LinkState, PlanHeld, PlanName, Register, RelayLoad,
        RelayToController, controller_to_relay as to_relay, link_state::State,
        relay_to_controller as from_relay,
    },
    frame_message,
};
use tradewind_trust::TokenKeys;

use crate::planner::{peak, places, reset_peak};

/// Links that a delta report of a relay of a thousand names: a tenth by age, and those whose
/// figures vary.
const VARYING: usize = 60;
/// After so many seconds a link is told again.
const REFRESH: usize = 10;
/// Seconds of steady running that are measured.
const STEADY_SECONDS: usize = 5;

/// What the controller's state machine takes: reports, planning, plans. One processor.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// Numbers of relays, in full mesh.
    #[arg(long, value_delimiter = ',', default_value = "100,300,1000")]
    relays: Vec<usize>,
    /// Of the network.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Milliseconds, unless said otherwise.
#[derive(Debug, Clone, Serialize)]
struct Row {
    relays: usize,
    /// All relays register, one after the other, and what they are told is encoded.
    register_all_ms: f64,
    /// Taking one whole report: the mean.
    whole_report_ms: f64,
    /// Links that a delta report names.
    delta_links: usize,
    /// Taking one delta report: the mean, and the longest.
    delta_report_ms: f64,
    delta_report_most_ms: f64,
    /// Share of one processor that a delta report of every relay each second takes, per cent.
    delta_reports_percent: f64,
    /// The first plan: the longest call of all until it is in force.
    first_plan_ms: f64,
    /// Building and encoding what all relays are told of it.
    parts_ms: f64,
    /// The same in bytes, of one relay.
    part_bytes: usize,
    /// A planning step while delays only jitter: the mean, and the longest.
    step_ms: f64,
    step_most_ms: f64,
    /// Planning steps in a second.
    steps_per_second: f64,
    /// A planning step after one link in a hundred has moved by up to 5 %.
    step_1_percent_ms: f64,
    /// A planning step after a link in use has failed, new plan included.
    step_failure_ms: f64,
    /// Memory beyond what was in use before: at the end, and the most, MiB.
    resident_mib: Option<f64>,
    most_mib: Option<f64>,
}

pub(crate) fn run(args: &ControllerArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.relays.iter().all(|&n| (3..=4_000).contains(&n)),
        "--relays takes numbers from 3 to 4000"
    );
    let mut rows = Vec::new();
    for &relays in &args.relays {
        if !args.json {
            eprintln!("{relays} relays …");
        }
        rows.push(measure(relays, args.seed));
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "rows": rows }))?
        );
        return Ok(());
    }
    println!("Full mesh, one processor; milliseconds.\n");
    for row in &rows {
        println!("{}", table(row));
    }
    Ok(())
}

fn table(row: &Row) -> String {
    let mib = |mib: Option<f64>| mib.map_or("-".to_owned(), |mib| format!("{mib:.0}"));
    format!(
        "{} relays\n\
         \x20 all register                  {:10.1}\n\
         \x20 a whole report                {:10.3}\n\
         \x20 a delta report ({:3} links)    {:10.3}   longest {:.3}; of all, each second: {:.1} % of a processor\n\
         \x20 first plan                    {:10.1}   and its parts {:.1}, {} bytes each\n\
         \x20 step, delays jitter           {:10.1}   longest {:.1}, {:.2} a second\n\
         \x20 step, 1 % of links moved      {:10.1}\n\
         \x20 step, a link in use fails     {:10.1}\n\
         \x20 memory, MiB                   {:>10}   most {}\n",
        row.relays,
        row.register_all_ms,
        row.whole_report_ms,
        row.delta_links,
        row.delta_report_ms,
        row.delta_report_most_ms,
        row.delta_reports_percent,
        row.first_plan_ms,
        row.parts_ms,
        row.part_bytes,
        row.step_ms,
        row.step_most_ms,
        row.steps_per_second,
        row.step_1_percent_ms,
        row.step_failure_ms,
        mib(row.resident_mib),
        mib(row.most_mib),
    )
}

fn measure(n: usize, seed: u64) -> Row {
    let before = reset_peak();
    let mut world = World::new(n, seed);
    let register_all_ms = world.register_all();
    let whole: Vec<f64> = (0..n).map(|relay| world.report_whole(relay)).collect();
    let mut first_plan_ms = 0.0_f64;
    for _ in 0..20 {
        let ticks = world.second(Noise::None).ticks;
        first_plan_ms = ticks.into_iter().fold(first_plan_ms, f64::max);
        if world.network.active_plan().is_some() {
            break;
        }
    }
    let (parts_ms, part_bytes) = (world.parts_ms, world.part_bytes);
    for _ in 0..REFRESH {
        world.second(Noise::Jitter);
    }
    let (mut reports, mut ticks) = (Vec::new(), Vec::new());
    for _ in 0..STEADY_SECONDS {
        let second = world.second(Noise::Jitter);
        reports.extend(second.reports);
        ticks.extend(second.ticks);
    }
    let steps_per_second = ticks.len() as f64 / STEADY_SECONDS as f64;
    world.move_links(n * n / 100);
    let moved = world.second(Noise::Jitter).ticks;
    let step_failure_ms = world.fail_a_link();
    let resident = resident();
    let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    let beyond = |mib: Option<f64>| Some((mib? - before?).max(0.0));
    Row {
        relays: n,
        register_all_ms,
        whole_report_ms: mean(&whole),
        delta_links: world.delta_links(),
        delta_report_ms: mean(&reports),
        delta_report_most_ms: most(&reports),
        delta_reports_percent: mean(&reports) * n as f64 / 10.0,
        first_plan_ms,
        parts_ms,
        part_bytes,
        step_ms: mean(&ticks),
        step_most_ms: most(&ticks),
        steps_per_second,
        step_1_percent_ms: most(&moved),
        step_failure_ms,
        resident_mib: beyond(resident),
        most_mib: beyond(peak()),
    }
}

/// What varies from one second to the next.
#[derive(Clone, Copy, PartialEq)]
enum Noise {
    None,
    /// Every delay that is told moves by up to 2 %.
    Jitter,
}

/// How long the calls of one second took, each in milliseconds.
#[derive(Default)]
struct Second {
    reports: Vec<f64>,
    /// Those of `tick` that took anything.
    ticks: Vec<f64>,
}

struct World {
    n: usize,
    network: Network,
    now: Duration,
    rng: Pcg64,
    /// One-way delays, microseconds, row-major.
    delays: Vec<f64>,
    /// What each relay's clock shows more, microseconds.
    clocks: Vec<i64>,
    /// And how much faster it runs, parts per billion.
    rates: Vec<i64>,
    down: Option<(usize, usize)>,
    sequence: u64,
    seconds: usize,
    /// Next hops of relay 0, by destination.
    next_hops: Vec<u32>,
    /// Building and encoding the parts of the last plan, and the size of one.
    parts_ms: f64,
    part_bytes: usize,
}

impl World {
    fn new(n: usize, seed: u64) -> Self {
        let mut rng = Pcg64::seed_from_u64(seed);
        let map = places(n, &mut rng);
        let delays = (0..n * n).map(|cell| {
            let ((ax, ay), (bx, by)) = (map[cell / n], map[cell % n]);
            let stretch: f64 = rng.random_range(0.0..1.0);
            500.0 + 1e3 * (ax - bx).hypot(ay - by) * (1.0 + 2.0 * stretch.powi(3))
        });
        let delays: Vec<f64> = delays.collect();
        let rates = (0..n).map(|_| rng.random_range(-20_000..20_000)).collect();
        let clocks = (0..n).map(|_| rng.random_range(-1_000_000_000..1_000_000_000));
        let config = NetworkConfig {
            expected_relays: Some(n),
            ..NetworkConfig::default()
        };
        let saved = SavedNetwork {
            epoch: 1,
            ..SavedNetwork::default()
        };
        let wall = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self {
            n,
            network: Network::new(config, saved, TokenKeys::default(), wall),
            now: Duration::ZERO,
            clocks: clocks.collect(),
            rates,
            delays,
            rng,
            down: None,
            sequence: 0,
            seconds: 0,
            next_hops: Vec::new(),
            parts_ms: 0.0,
            part_bytes: 0,
        }
    }

    fn register_all(&mut self) -> f64 {
        let mut took = 0.0;
        for relay in 0..self.n {
            self.now += Duration::from_micros(100);
            let address = format!("10.{}.{}.7:4433", relay / 250, relay % 250);
            let register = Register {
                name: name(relay),
                region: format!("region-{}", relay % 20),
                software: "tradewind/0".to_owned(),
                client_addresses: vec![address.clone()],
                link_addresses: vec![address],
                incarnation: 1 + relay as u64,
                ..Register::default()
            };
            let message = body(from_relay::Body::Register(register));
            took += timed(|| {
                self.network
                    .received(self.now, ConnectionId(relay as u64), message);
                for action in self.network.take_actions() {
                    std::hint::black_box(frame_of(&action));
                }
            });
        }
        took
    }

    fn report_whole(&mut self, relay: usize) -> f64 {
        let peers = (0..self.n).filter(|&peer| peer != relay);
        let links = peers.map(|peer| self.link(relay, peer, Noise::None));
        let links = links.collect();
        self.report(relay, links, false)
    }

    fn report(&mut self, relay: usize, links: Vec<LinkState>, delta: bool) -> f64 {
        self.sequence += 1;
        let report = LinkReport {
            sequence: self.sequence,
            links,
            load: Some(RelayLoad::default()),
            delta,
            demand: Vec::new(),
        };
        let message = body(from_relay::Body::LinkReport(report));
        timed(|| {
            self.network
                .received(self.now, ConnectionId(relay as u64), message);
        })
    }

    fn delta_links(&self) -> usize {
        (0..self.n).filter(|&peer| self.is_told(0, peer, 0)).count()
    }

    /// Whether a relay tells of its link with a peer in a certain second.
    fn is_told(&self, relay: usize, peer: usize, second: usize) -> bool {
        let near = (peer + self.n - relay) % self.n;
        near != 0 && (near <= VARYING || (peer + relay + second).is_multiple_of(REFRESH))
    }

    /// One second: every relay reports what has moved, and time is kept meanwhile.
    fn second(&mut self, noise: Noise) -> Second {
        let mut second = Second::default();
        self.seconds += 1;
        let end = self.now + Duration::from_secs(1);
        let apart = Duration::from_secs(1) / self.n as u32;
        for relay in 0..self.n {
            self.keep_time(&mut second.ticks);
            let peers = (0..self.n).filter(|&peer| self.is_told(relay, peer, self.seconds));
            let peers: Vec<usize> = peers.collect();
            let links = peers.into_iter().map(|peer| self.link(relay, peer, noise));
            let links = links.collect();
            second.reports.push(self.report(relay, links, true));
            self.answer();
            self.now += apart;
        }
        self.now = end;
        self.keep_time(&mut second.ticks);
        second
    }

    fn keep_time(&mut self, ticks: &mut Vec<f64>) {
        if self.network.next_tick() <= self.now {
            let took = timed(|| self.network.tick(self.now));
            let ended = Duration::from_secs_f64(took / 1e3);
            self.network.ticked(self.now + ended, ended);
            ticks.push(took);
            self.answer();
        }
    }

    /// Does as relays do: takes plans and acknowledges them.
    fn answer(&mut self) {
        let mut held = Vec::new();
        let actions = self.network.take_actions();
        if actions.is_empty() {
            return;
        }
        let mut bytes = 0;
        let encode_ms = timed(|| {
            for action in actions {
                if let Action::SendPart { connection, part } = action {
                    let message = part.message();
                    bytes = bytes.max(frame_message(&message).len());
                    held.extend(self.plan_of(connection, message));
                } else {
                    std::hint::black_box(frame_of(&action));
                }
            }
        });
        if !held.is_empty() {
            (self.parts_ms, self.part_bytes) = (encode_ms, bytes);
        }
        for (connection, plan) in held {
            let held = PlanHeld { plan: Some(plan) };
            let message = body(from_relay::Body::PlanHeld(held));
            self.network.received(self.now, connection, message);
        }
    }

    fn plan_of(
        &mut self,
        connection: ConnectionId,
        message: ControllerToRelay,
    ) -> Option<(ConnectionId, PlanName)> {
        let Some(to_relay::Body::PlanPart(part)) = message.body else {
            return None;
        };
        if connection.0 == 0 {
            self.next_hops
                .clone_from(&part.profiles[0].trees[0].next_hop);
        }
        Some((connection, part.plan?))
    }

    fn move_links(&mut self, links: usize) {
        for _ in 0..links {
            let cell = self.rng.random_range(0..self.n * self.n);
            self.delays[cell] *= self.rng.random_range(0.95..1.05);
        }
    }

    /// The link of relay 0 that is used most fails; the longest call until another plan is in force.
    fn fail_a_link(&mut self) -> f64 {
        let mut used: BTreeMap<u32, usize> = BTreeMap::new();
        for &hop in self.next_hops.iter().filter(|&&hop| hop > 0) {
            *used.entry(hop).or_default() += 1;
        }
        let most = used.into_iter().max_by_key(|&(_, count)| count);
        let peer = most.map_or(1, |(hop, _)| hop as usize);
        self.down = Some((0, peer));
        let link = self.link(0, peer, Noise::None);
        let mut ticks = vec![self.report(0, vec![link], true)];
        let before = self.network.active_plan();
        for _ in 0..500 {
            self.now += Duration::from_millis(10);
            self.keep_time(&mut ticks);
            if self.network.active_plan() != before {
                break;
            }
        }
        ticks.into_iter().fold(0.0, f64::max)
    }

    fn link(&mut self, own: usize, peer: usize, noise: Noise) -> LinkState {
        let state = match self.down {
            Some((a, b)) if (a, b) == (own, peer) || (b, a) == (own, peer) => State::Down,
            _ => State::Up,
        };
        let factor = match noise {
            Noise::None => 1.0,
            Noise::Jitter => self.rng.random_range(1.0..1.02),
        };
        let delay = |from: usize, to: usize| factor * self.delays[from * self.n + to];
        let (there, back) = (delay(own, peer), delay(peer, own));
        let faster = self.rates[own] - self.rates[peer];
        let passed = self.now.as_micros() as i64;
        let ahead = self.clocks[own] - self.clocks[peer] + faster * passed / 1_000_000_000;
        LinkState {
            peer: name(peer),
            state: state.into(),
            rtt_min_us: (there + back) as u32,
            rtt_smoothed_us: (there + back) as u32 + 100,
            rtt_deviation_us: 200,
            raw_in_us: back as i64 + ahead,
            raw_out_us: there as i64 - ahead,
            raw_known: true,
            bytes_sent: 1_000 * self.seconds as u64,
            bytes_received: 1_000 * self.seconds as u64,
            packets_sent: 10 * self.seconds as u64,
            packets_received: 10 * self.seconds as u64,
            drift_ppb: faster as i32,
            loss_probes: 100,
            ..LinkState::default()
        }
    }
}

/// What is sent, encoded.
fn frame_of(action: &Action) -> Option<bytes::Bytes> {
    match action {
        Action::Send { message, .. } | Action::SendAll { message, .. } => {
            Some(frame_message(message))
        }
        Action::SendPart { part, .. } => Some(frame_message(&part.message())),
        _ => None,
    }
}

fn name(relay: usize) -> String {
    format!("relay-{relay:04}")
}

fn body(body: from_relay::Body) -> RelayToController {
    RelayToController { body: Some(body) }
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len().max(1) as f64
}

fn timed(act: impl FnOnce()) -> f64 {
    let host: &dyn Host = &OsHost;
    let begin = host.now();
    act();
    (host.now() - begin).as_secs_f64() * 1e3
}

/// Memory that is resident now, MiB.
fn resident() -> Option<f64> {
    crate::planner::status("VmRSS:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_get_their_plan_and_another_one_when_a_link_fails() {
        let row = measure(12, 1);
        assert!(row.part_bytes > 0 && row.first_plan_ms > 0.0);
        assert!(row.steps_per_second > 1.0, "{}", row.steps_per_second);
        let mut world = World::new(12, 1);
        world.register_all();
        for relay in 0..12 {
            world.report_whole(relay);
        }
        for _ in 0..5 {
            world.second(Noise::None);
        }
        let before = world.network.active_plan();
        assert!(before.is_some());
        world.fail_a_link();
        assert!(world.network.active_plan() > before);
    }
}
