//! `tradewind lab`: a whole network on this machine, without privileges. Relays, a controller and
//! clients run on an emulated wide-area network with real round-trip times; all pairs of clients
//! send each other media packets and messages; what they measure is shown and reported.
//!
//! [`groups`] are sent to besides, if asked for; [`copies`] counts how many links that takes.
//!
//! [`far_clients`] are elsewhere than relays, if asked for: what the whole way takes.
//!
//! Things fail on purpose, as asked for ([`faults`]) or by chance ([`chaos`], [`failures`]);
//! [`steady`] measures for how long that silences a flow, [`invariants`] says what must hold all
//! the same.

mod acts;
mod builder;
mod chaos;
mod copies;
mod crowd;
mod display;
mod failures;
mod far_clients;
mod faults;
mod ground;
mod group_record;
mod groups;
mod invariants;
mod ledger;
mod options;
mod places;
mod record;
mod reference;
mod report;
mod schedule;
mod seeds;
mod steady;
#[cfg(test)]
mod tests;
mod traffic;
mod trails;
mod users;
mod world;

use std::{io::Write as _, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};

pub(crate) use options::LabArgs;
use options::{Mode, Scenario};
use report::Report;
use world::Watched;

/// Runs the lab as the options say.
pub(crate) fn run(args: &LabArgs) -> anyhow::Result<()> {
    // Nothing but what goes wrong with us: in the lab things are broken on purpose.
    let _ = tradewind_service::logs::init("off");
    let scenario = Scenario::new(args)?;
    if let Mode::Failures { .. } = scenario.mode {
        let report = failures::measure(&scenario, true)?;
        show(&scenario, &report, || report.summary())?;
        return report.verdict(&scenario);
    }
    if let Some(far) = &scenario.far_clients {
        let report = far_clients::measure(&scenario, far)?;
        return show(&scenario, &report, || report.text());
    }
    let report = measure(&scenario, true)?;
    show(&scenario, &report, || display::summary(&report))?;
    verdict(&scenario, &report)
}

/// Writes the report where it was asked for, and shows it.
fn show(
    scenario: &Scenario,
    report: &impl serde::Serialize,
    summary: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report).context("cannot write the report")? + "\n";
    if let Some(file) = &scenario.report {
        std::fs::write(file, &json)
            .with_context(|| format!("cannot write the report to {}", file.display()))?;
    }
    let text = if scenario.json { json } else { summary() };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Nobody reads on: `tradewind lab | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to standard output"),
    }
}

/// An error when something did not hold that must, with the command that shows it again.
fn verdict(scenario: &Scenario, report: &Report) -> anyhow::Result<()> {
    if report.violations.is_empty() {
        return Ok(());
    }
    for violation in &report.violations {
        eprintln!("broken: {}: {}", violation.invariant, violation.what);
    }
    bail!(
        "{} violations with seed {}; to replay: {}",
        report.violations.len(),
        scenario.seed,
        scenario.replay()
    )
}

/// Builds the world, runs it to its end and says what was measured; shows it meanwhile on standard
/// error if asked to.
#[allow(clippy::disallowed_methods)] // what the run takes, for people
fn measure(scenario: &Scenario, show: bool) -> anyhow::Result<Report> {
    let began = Instant::now();
    let watched = Arc::new(Watched::new(scenario));
    let display = show.then(|| display::Display::start(scenario, watched.clone()));
    let outcome = world::run(scenario, &watched);
    drop(display);
    Ok(Report::new(scenario, outcome?, began.elapsed()))
}
