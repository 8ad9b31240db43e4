//! What people see: a live table on a terminal, else a line every now and then, both on standard
//! error; and a summary at the end.

use std::{
    fmt::Write as _,
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tradewind_routing::RttMatrix;

use super::{
    options::Scenario,
    places::Place,
    report::{PairReport, Report},
    world::Watched,
};

const REDRAWN_EVERY: Duration = Duration::from_millis(500);
const LINE_EVERY: Duration = Duration::from_secs(5);
const LIVE_ROWS: usize = 12;
const SUMMARY_ROWS: usize = 15;

/// Shows what happens for as long as it lives, from a thread of its own: the network's must not
/// wait for a terminal.
#[derive(Debug)]
pub(super) struct Display {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    pub(super) fn start(scenario: &Scenario, watched: Arc<Watched>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let terminal = std::io::stderr().is_terminal();
        let view = View {
            matrix: scenario.matrix.clone(),
            places: scenario.places.clone(),
            duration: scenario.duration,
            watched,
        };
        eprintln!("tradewind lab: {scenario}");
        for fault in &scenario.faults {
            let what = fault.what.describe(&scenario.matrix);
            eprintln!("  at {:.1} s: {what}", fault.at.as_secs_f64());
        }
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("lab-display".to_owned())
            .spawn(move || {
                if terminal {
                    view.draw_until(&stopped);
                } else {
                    view.print_until(&stopped);
                }
            });
        Self {
            stop,
            // Without it the lab works all the same.
            thread: thread.ok(),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has only shown something.
            let _ = thread.join();
        }
    }
}

/// What the display looks at.
struct View {
    matrix: RttMatrix,
    places: Vec<Place>,
    duration: Duration,
    watched: Arc<Watched>,
}

impl View {
    fn draw_until(&self, stop: &AtomicBool) {
        let screen = MultiProgress::new();
        let table = screen.add(ProgressBar::new_spinner());
        table.set_style(style("{msg}"));
        let length = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let bar = screen.add(ProgressBar::new(length));
        bar.set_style(style("{wide_bar} {msg}"));
        while !stop.load(Relaxed) {
            match self.watched.elapsed() {
                None => bar.set_message("starting relays, measuring links"),
                Some(elapsed) => {
                    let position = u64::try_from(elapsed.as_millis()).unwrap_or(length);
                    bar.set_position(position.min(length));
                    bar.set_message(self.progress(elapsed));
                    table.set_message(self.live_table());
                }
            }
            std::thread::park_timeout(REDRAWN_EVERY);
        }
        table.finish_and_clear();
        bar.finish_and_clear();
    }

    #[allow(clippy::disallowed_methods)] // for people, by the wall clock
    fn print_until(&self, stop: &AtomicBool) {
        let mut printed = Instant::now();
        while !stop.load(Relaxed) {
            std::thread::park_timeout(REDRAWN_EVERY);
            if printed.elapsed() < LINE_EVERY || stop.load(Relaxed) {
                continue;
            }
            printed = Instant::now();
            match self.watched.elapsed() {
                None => eprintln!("starting relays, measuring links"),
                Some(elapsed) => eprintln!("{}", self.progress(elapsed)),
            }
        }
    }

    fn progress(&self, elapsed: Duration) -> String {
        let totals = self.watched.record.totals();
        let plans = self.watched.plans_activated();
        format!(
            "{:.0} of {:.0} s: media {} of {}, messages {} of {}, plan {plans}",
            elapsed.min(self.duration).as_secs_f64(),
            self.duration.as_secs_f64(),
            totals.media_delivered,
            totals.media_sent,
            totals.messages_delivered,
            totals.messages_sent,
        )
    }

    fn live_table(&self) -> String {
        let n = self.matrix.len();
        let now_us = self.watched.record.present_rtts_us();
        let mut rows: Vec<(f64, usize, usize, f64, f64)> = Vec::new();
        for from in 0..n {
            for to in from + 1..n {
                // Both directions measure the same round trip, but for the legs' order.
                let now_us = now_us[from * n + to].or(now_us[to * n + from]);
                if let (Some(direct), Some(now_us)) = (self.matrix.direct_rtt(from, to), now_us) {
                    let now = f64::from(now_us) / 1_000.0;
                    rows.push((direct - now, from, to, direct, now));
                }
            }
        }
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut table = new_table();
        for &(_, from, to, direct, now) in rows.iter().take(LIVE_ROWS) {
            let names = self.matrix.names();
            // The way back is another one; the one that has more to show is enough.
            let (there, back) = (self.path(from, to), self.path(to, from));
            let (from, to, path) = if there.len() >= back.len() {
                (from, to, there)
            } else {
                (to, from, back)
            };
            let pair = format!("{} - {}", names[from], names[to]);
            table.add_row(row(pair, Some(direct), Some(now), &path));
        }
        table.to_string()
    }

    fn path(&self, from: usize, to: usize) -> Vec<String> {
        let (from, to) = (&self.places[from].relay, &self.places[to].relay);
        self.watched
            .controller()
            .and_then(|controller| controller.path(from, to).ok())
            .map(|view| view.path)
            .unwrap_or_default()
    }
}

/// The tables and counts for the end.
pub(super) fn summary(report: &Report) -> String {
    let mut pairs: Vec<&PairReport> = report.pairs.iter().collect();
    let saving = |pair: &PairReport| pair.saving_ms().unwrap_or(f64::NEG_INFINITY);
    pairs.sort_by(|a, b| saving(b).total_cmp(&saving(a)));
    // A pair and its reverse save the same: the one whose way has more to show is enough.
    let mut shown: Vec<&PairReport> = Vec::new();
    for pair in pairs {
        let reverse = |other: &&PairReport| other.from == pair.to && other.to == pair.from;
        match shown.iter().position(reverse) {
            Some(at) if shown[at].path.len() < pair.path.len() => shown[at] = pair,
            None if shown.len() < SUMMARY_ROWS => shown.push(pair),
            _ => {}
        }
    }
    let mut table = new_table();
    for pair in shown {
        let name = format!("{} - {}", pair.from, pair.to);
        table.add_row(row(name, pair.direct_ms, pair.overlay_ms_p50, &pair.path));
    }
    let summary = &report.summary;
    let mut text = format!("{table}\n\n");
    // Writing to a string never fails.
    let _ = match summary.captured {
        Some(captured) => writeln!(
            text,
            "captured      {:.1} % of what {} of {} pairs can save; median {} ms, most {} ms",
            captured * 100.0,
            summary.improvable_pairs,
            report.pairs.len(),
            shown_ms(summary.median_saving_ms),
            shown_ms(summary.max_saving_ms),
        ),
        None => writeln!(
            text,
            "captured      nothing: no pair has a way that is 5 % and 5 ms shorter than direct"
        ),
    };
    let _ = writeln!(
        text,
        "messages      {} of {} delivered, {} failed, {} doubled, {} out of order",
        summary.messages_delivered,
        summary.messages_sent,
        summary.messages_failed,
        summary.duplicates,
        summary.reordered,
    );
    let _ = writeln!(
        text,
        "media         {} of {} packets delivered",
        summary.media_delivered, summary.media_sent
    );
    let _ = writeln!(
        text,
        "plan updates  {} (measuring began {:.1} s after the first start)",
        summary.plan_updates, report.run.startup_s
    );
    for fault in &report.faults {
        let _ = writeln!(text, "at {:>5.1} s    {}", fault.at_s, fault.what);
    }
    if summary.failover_flows > 0 {
        let _ = writeln!(
            text,
            "failover      silence of {} flows: median {} ms, 99 % {} ms, most {} ms; {} over the bound, {} not routed around",
            summary.failover_flows,
            shown_ms(summary.failover_gap_ms_p50),
            shown_ms(summary.failover_gap_ms_p99),
            shown_ms(summary.failover_gap_ms_max),
            summary.failover_over_bound,
            summary.failover_unrouted,
        );
    }
    if let Some(groups) = &summary.groups {
        let _ = writeln!(
            text,
            "groups        {} of {} deliveries of {} messages, {} failed; {} segments lost, {} doubled, {} out of order; median {} ms, 99 % {} ms",
            groups.group_deliveries,
            groups.group_deliveries_expected,
            groups.group_messages_sent,
            groups.group_messages_failed,
            groups.group_gaps,
            groups.group_duplicates,
            groups.group_reordered,
            shown_ms(groups.group_ms_p50),
            shown_ms(groups.group_ms_p99),
        );
        let _ = writeln!(
            text,
            "copies        {} over links, {} are the least; {} segments left out; media to groups {} of {}",
            groups.copies_sent,
            groups.copies_minimum,
            groups.copies_excluded,
            groups.group_media_deliveries,
            groups.group_media_expected,
        );
    }
    if summary.session_flows > 0 {
        let _ = writeln!(
            text,
            "sessions      silence of {} flows whose own edge failed: median {} ms, 99 % {} ms, most {} ms",
            summary.session_flows,
            shown_ms(summary.session_gap_ms_p50),
            shown_ms(summary.session_gap_ms_p99),
            shown_ms(summary.session_gap_ms_max),
        );
    }
    text
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["pair", "direct ms", "Tradewind ms", "saved", "path"]);
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn row(pair: String, direct: Option<f64>, now: Option<f64>, path: &[String]) -> Vec<Cell> {
    let saved = direct.zip(now).map(|(direct, now)| 1.0 - now / direct);
    let saved_text =
        saved.map_or_else(|| "-".to_owned(), |saved| format!("{:.0} %", saved * 100.0));
    let mut saved_cell = Cell::new(saved_text);
    if saved.is_some_and(|saved| saved >= 0.05) {
        saved_cell = saved_cell.fg(Color::Green);
    }
    vec![
        Cell::new(pair),
        Cell::new(shown_ms(direct)),
        Cell::new(shown_ms(now)),
        saved_cell,
        Cell::new(path.join(" > ")),
    ]
}

fn shown_ms(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants")
}
