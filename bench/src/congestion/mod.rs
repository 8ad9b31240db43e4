//! `tradewind-bench congestion`.

mod scene;

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use self::scene::{Control, Outcome, Scene, Work, play};

const LOSSES: [f64; 3] = [0.0, 0.01, 0.03];
const ROUND_TRIPS_MS: [u64; 3] = [20, 80, 250];
const CONTROLS: [Control; 3] = [Control::Tradewind, Control::Cubic, Control::Bbr];
const MBPS: f64 = 50.0;
const BUFFER_MS: u64 = 250;
/// Calls with so many pictures offer 55 % of the bottleneck in payload, some 60 % on the wire.
const SOME: Work = Work::Calls {
    calls: 100,
    videos: 14,
};
/// 150 %.
const TOO_MANY: Work = Work::Calls {
    calls: 100,
    videos: 46,
};

/// The links' congestion control beside CUBIC and BBR.
#[derive(Debug, Args)]
pub(crate) struct CongestionArgs {
    /// The seed of losses and of everything else that is drawn (but for BBR's own dice).
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One use of the link, and whether TCP is beside it.
struct Part {
    title: &'static str,
    work: Work,
    beside_tcp: bool,
    warm_up_s: u64,
    measure_s: u64,
}

const PARTS: [Part; 5] = [
    Part {
        title: "100 calls and 14 pictures, 27 Mbit/s offered",
        work: SOME,
        beside_tcp: false,
        warm_up_s: 4,
        measure_s: 10,
    },
    Part {
        title: "100 calls and 46 pictures, 75 Mbit/s offered",
        work: TOO_MANY,
        beside_tcp: false,
        warm_up_s: 5,
        measure_s: 10,
    },
    Part {
        title: "one bulk stream",
        work: Work::Bulk,
        beside_tcp: false,
        warm_up_s: 8,
        measure_s: 12,
    },
    Part {
        title: "100 calls and 14 pictures beside a TCP-like bulk flow",
        work: SOME,
        beside_tcp: true,
        warm_up_s: 10,
        measure_s: 20,
    },
    Part {
        title: "one bulk stream beside a TCP-like bulk flow",
        work: Work::Bulk,
        beside_tcp: true,
        warm_up_s: 10,
        measure_s: 30,
    },
];

#[derive(Debug, Serialize)]
struct Played {
    scene: Scene,
    outcome: Outcome,
}

pub(crate) fn run(args: &CongestionArgs) -> anyhow::Result<()> {
    let played = play_all(&scenes(args.seed), !args.json)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json!(played))?);
    } else {
        show(&played);
    }
    Ok(())
}

/// Part by part, by round trip and loss, the controllers side by side.
fn scenes(seed: u64) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for part in &PARTS {
        for rtt_ms in ROUND_TRIPS_MS {
            for loss in LOSSES {
                scenes.extend(CONTROLS.map(|control| Scene {
                    control,
                    work: part.work,
                    beside_tcp: part.beside_tcp,
                    loss,
                    rtt_ms,
                    mbps: MBPS,
                    buffer_ms: BUFFER_MS,
                    configured: true,
                    warm_up_s: part.warm_up_s,
                    measure_s: part.measure_s,
                    seed,
                }));
            }
        }
    }
    scenes
}

/// Plays scenes on all processors; each has a virtual time of its own.
fn play_all(scenes: &[Scene], progress: bool) -> anyhow::Result<Vec<Played>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let index = next.fetch_add(1, Relaxed)
                    && let Some(scene) = scenes.get(index)
                {
                    let outcome = play(scene);
                    let mut done = done.lock().expect("nobody panics while adding");
                    done.push((index, outcome));
                    if progress {
                        eprint!("\r{} of {} scenes", done.len(), scenes.len());
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nobody panics while adding");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter()
        .map(|(index, outcome)| {
            let scene = scenes[index];
            let outcome = outcome.with_context(|| format!("in {scene:?}"))?;
            Ok(Played { scene, outcome })
        })
        .collect()
}

fn show(played: &[Played]) {
    eprint!("\r");
    println!(
        "a path of {MBPS} Mbit/s with a queue of {BUFFER_MS} ms, loss each way as said; waiting is what small\npackets of somebody else wait in that queue (median and 99th percentile, ms)"
    );
    let per_part = played.len() / PARTS.len();
    for (part, rows) in PARTS.iter().zip(played.chunks(per_part)) {
        println!("\n{}", part.title);
        let column = match (part.work, part.beside_tcp) {
            (Work::Calls { .. }, false) => "arrived  waiting",
            (Work::Calls { .. }, true) => "arrived  TCP Mbit/s",
            (Work::Bulk, false) => "Mbit/s  waiting",
            (Work::Bulk, true) => "Mbit/s  TCP Mbit/s",
        };
        println!("{:<14}{:<24}{:<24}{:<24}", "", "tradewind", "cubic", "bbr");
        println!("{:<14}{column:<24}{column:<24}{column:<24}", "round trip");
        for row in rows.chunks(CONTROLS.len()) {
            let scene = row[0].scene;
            let path = format!("{} ms, {:.0} %", scene.rtt_ms, scene.loss * 100.0);
            print!("{path:<14}");
            for Played { outcome, .. } in row {
                print!("{:<24}", cell(outcome));
            }
            println!();
        }
    }
}

fn cell(outcome: &Outcome) -> String {
    let first = match outcome.delivered {
        Some(share) => format!("{:>5.1} %", share * 100.0),
        None => format!("{:>5.1}", outcome.goodput_mbps),
    };
    if outcome.broken.is_some() {
        return "(connection lost)".to_owned();
    }
    let second = match outcome.tcp_mbps {
        Some(tcp) => format!("{tcp:>5.1}"),
        None => format!(
            "{:>3.0} {:>4.0}",
            outcome.queue_p50_ms, outcome.queue_p99_ms
        ),
    };
    format!("{first}  {second}")
}
