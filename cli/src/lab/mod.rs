//! `tradewind lab`: a whole network on this machine, without privileges. Relays, a controller and
//! clients run on an emulated wide-area network with real round-trip times; all pairs of clients
//! send each other media packets and messages; what they measure is shown and reported.

mod display;
mod options;
mod places;
mod record;
mod report;
mod schedule;
mod seeds;
#[cfg(test)]
mod tests;
mod traffic;
mod world;

use std::{io::Write as _, sync::Arc, time::Instant};

use anyhow::Context as _;

pub(crate) use options::LabArgs;
use options::Scenario;
use report::Report;
use world::Watched;

/// Runs the lab as the options say.
pub(crate) fn run(args: &LabArgs) -> anyhow::Result<()> {
    // Nothing but what goes wrong with us: in the lab things are broken on purpose.
    let _ = tradewind_service::logs::init("off");
    let scenario = Scenario::new(args)?;
    let report = measure(&scenario, true)?;
    let json = serde_json::to_string_pretty(&report).context("cannot write the report")? + "\n";
    if let Some(file) = &scenario.report {
        std::fs::write(file, &json)
            .with_context(|| format!("cannot write the report to {}", file.display()))?;
    }
    let text = if scenario.json {
        json
    } else {
        display::summary(&report)
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Nobody reads on: `tradewind lab | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to standard output"),
    }
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
