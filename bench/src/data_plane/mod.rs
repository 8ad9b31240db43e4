//! `tradewind-bench data-plane`: what a packet costs in the relay, beside two references in the same
//! run: a plain UDP forwarder, and a minimal relay on async quinn.
//!
//! Senders, what is between, and receivers are processes of their own. For every load the ways through
//! are measured in turn, several times over, so that a mood of the machine meets them all alike: the
//! ratios are the result.

pub(crate) mod between;
pub(crate) mod ends;
mod scene;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use self::{
    between::UdpMode,
    scene::{Block, Load, Scene, Through},
};

/// Datagrams through one relay, beside a plain UDP forwarder and a minimal relay on quinn.
#[derive(Debug, Args)]
pub(crate) struct DataPlaneArgs {
    /// How long to measure each block.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How many blocks for each load and each way through, taken in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only the loads whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Pairs, and what goes over each set of them.
struct Scenario {
    name: &'static str,
    pairs: u32,
    through: &'static [Through],
    loads: &'static [Load],
}

const fn load(bytes: u16, rate: u32) -> Load {
    Load { bytes, rate }
}

/// A load without end.
const MOST: u32 = 0;

const SCENARIOS: [Scenario; 2] = [
    Scenario {
        name: "1 to 1",
        pairs: 1,
        through: &[
            Through::Udp(UdpMode::Single),
            Through::Udp(UdpMode::Batched),
            Through::Udp(UdpMode::Segmented),
            Through::Quinn,
            Through::Tradewind,
        ],
        loads: &[
            load(200, 500),
            load(1_200, 500),
            load(200, 30_000),
            load(1_200, 30_000),
            load(200, 100_000),
            load(1_200, 100_000),
            load(200, MOST),
            load(1_200, MOST),
        ],
    },
    Scenario {
        name: "100 pairs",
        pairs: 100,
        through: &[
            Through::Udp(UdpMode::Batched),
            Through::Udp(UdpMode::Sealed),
            Through::Quinn,
            Through::Tradewind,
        ],
        loads: &[load(1_200, 30_000), load(1_200, 60_000)],
    },
];

/// One line of the table: the medians of its blocks.
#[derive(Debug, Serialize)]
struct Row {
    scenario: &'static str,
    through: &'static str,
    payload_bytes: u16,
    /// Packets per second that were offered; `null`: as many as possible.
    offered_per_s: Option<u32>,
    sent: u64,
    delivered: u64,
    delivered_per_s: f64,
    /// Of the process between, seconds per million delivered.
    cpu_s_per_million: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    /// Memory of the process between at the end, bytes.
    memory: u64,
}

pub(crate) fn run(args: &DataPlaneArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for scenario in &SCENARIOS {
        let loads: Vec<Load> = scenario
            .loads
            .iter()
            .copied()
            .filter(|load| name(scenario, *load).contains(&args.only))
            .collect();
        if loads.is_empty() {
            continue;
        }
        eprintln!("{}: sessions are set up", scenario.name);
        let mut scenes = scenario
            .through
            .iter()
            .map(|&through| Scene::start(through, scenario.pairs))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for load in loads {
            eprintln!("{}", name(scenario, load));
            let mut blocks: Vec<Vec<Block>> = scenes.iter().map(|_| Vec::new()).collect();
            for _ in 0..args.rounds {
                for (scene, blocks) in scenes.iter_mut().zip(&mut blocks) {
                    blocks.push(scene.measure(load, Duration::from_secs(args.seconds.into()))?);
                }
            }
            for (scene, blocks) in scenes.iter().zip(blocks) {
                rows.push(row(scenario.name, scene.through(), load, &blocks));
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

fn name(scenario: &Scenario, load: Load) -> String {
    let rate = match load.rate {
        MOST => "as many as possible".to_owned(),
        rate => format!("{rate}/s"),
    };
    format!("{}, {} B, {rate}", scenario.name, load.bytes)
}

fn row(scenario: &'static str, through: Through, load: Load, blocks: &[Block]) -> Row {
    let of = |figure: fn(&Block) -> f64| median(blocks.iter().map(figure).collect());
    Row {
        scenario,
        through: through.name(),
        payload_bytes: load.bytes,
        offered_per_s: (load.rate != MOST).then_some(load.rate),
        sent: blocks.iter().map(|block| block.sent).sum(),
        delivered: blocks.iter().map(|block| block.arrived.delivered).sum(),
        delivered_per_s: of(|block| block.arrived.delivered as f64 / block.seconds),
        cpu_s_per_million: of(|block| block.cpu / block.arrived.delivered as f64 * 1e6),
        p50_us: of(|block| block.arrived.p50_us),
        p99_us: of(|block| block.arrived.p99_us),
        p999_us: of(|block| block.arrived.p999_us),
        memory: blocks.last().map_or(0, |block| block.memory),
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(rows: &[Row]) {
    println!(
        "CPU of the process between, seconds per million delivered (s/M), and its ratio to the UDP \
         forwarder in\nbatches and to quinn; delays from sender to receiver, microseconds; medians \
         of the blocks\n\n\
         {:<22}{:<18}{:>10}{:>9}{:>8}{:>7}{:>7}{:>9}{:>9}{:>10}{:>8}",
        "", "through", "per s", "arrived", "s/M", "/udp", "/quinn", "p50", "p99", "p99.9", "MiB"
    );
    let cost = |like: &Row, through: Through| {
        rows.iter()
            .find(|row| {
                row.through == through.name()
                    && (row.scenario, row.payload_bytes, row.offered_per_s)
                        == (like.scenario, like.payload_bytes, like.offered_per_s)
            })
            .map_or(f64::NAN, |row| row.cpu_s_per_million)
    };
    let mut last = String::new();
    for row in rows {
        let rate = row
            .offered_per_s
            .map_or("most".to_owned(), |rate| format!("{rate}/s"));
        let name = format!("{} {} B {rate}", row.scenario, row.payload_bytes);
        println!(
            "{:<22}{:<18}{:>10.0}{:>8.1}%{:>8.2}{:>7.2}{:>7.2}{:>9.0}{:>9.0}{:>10.0}{:>8.1}",
            if name == last { "" } else { &name },
            row.through,
            row.delivered_per_s,
            row.delivered as f64 / row.sent as f64 * 100.0,
            row.cpu_s_per_million,
            row.cpu_s_per_million / cost(row, Through::Udp(UdpMode::Batched)),
            row.cpu_s_per_million / cost(row, Through::Quinn),
            row.p50_us,
            row.p99_us,
            row.p999_us,
            row.memory as f64 / f64::from(1 << 20),
        );
        last = name;
    }
}
