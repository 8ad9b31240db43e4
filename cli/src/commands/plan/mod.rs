//! `tradewind plan`: what if there were a network of relays at these places? Offline, on any
//! matrix of round-trip times.

mod answer;
mod display;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tradewind_routing::{
    Progress, RttMatrix, Stage, WhatIf,
    matrix::MAX_RTT_MS,
    placement::{self, Placement},
};
use tradewind_service::exit::UsageError;

use super::show;
use crate::matrix_args::{self, Part, part, place};
use answer::Answer;

/// Tells what a network of relays at the places of a matrix would save: for every ordered pair of
/// places the best way over up to 4 relays between its ends.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tradewind plan
  tradewind plan --matrix rtt.csv --hop-cost 0.5 --json --pairs
  tradewind plan --matrix rtt.csv --choose 8
  tradewind plan --matrix rtt.csv --relays tokyo,dubai,london --failures
  tradewind plan --matrix rtt.csv --cut 'Cape Town-Mumbai' --cut Dubai

The matrix is a square CSV of round-trip times in milliseconds: names in the first row and, in the
same order, in the first column; row = where a way begins. Cells count as they stand, each
direction for itself; an empty cell is no link; the diagonal is ignored.

A client is at every place, a relay too unless --relays or --choose says where. A client at a
relay's place uses that one, any other client the relay (its edge) over which its way is best. A
way costs its cells, added up, and the hop cost for each relay between its ends, and never more
than the direct cell. Up to 4 relays are crossed between the relays at its ends.

In the JSON:
  pair_count             ordered pairs of different places that have a way, directly or over
                         relays; those without are in unreachable_count and not in pairs
  direct_count           those of them with a cell of their own
  improved_over_5pct     how many pairs with a cell have a way more than 5 % below it
  latency_removed_pct    100 * (1 - sum of best / sum of direct), over pairs with a cell
  median_saving_ms, p99_saving_ms
                         of direct - best over all pairs with a cell, 0 for those that gain
                         nothing; between two values in proportion
  pairs_by_relays_crossed
                         how many pairs cross 0, 1, 2, ... relays between their ends
  pairs                  with --pairs: from, to, direct_ms (null: no cell), best_ms, path with both
                         ends
  choice                 with --choose: the relays, first the one that helps most alone, then
                         always the one that helps most beside those before it; the rest of the
                         answer is for all of them
  cut                    with --cut: the same numbers for what is left, and what the pairs between
                         remaining places lose: worsened_count, added_ms, cut_off_count; with
                         --pairs the pairs that change, best_ms null where no way is left
  failures               with --failures: for each relay and each link in use (both directions),
                         dearest first: pairs that must go another way, added_ms all together, and
                         cut_off_count of them without any way. A failed relay's own clients take
                         another edge or the direct way. With --cut: of what is left")]
pub(crate) struct PlanArgs {
    /// Square CSV of round-trip times in milliseconds [default: 12 regions that come with the
    /// program]
    #[arg(long, value_name = "FILE", env = "TRADEWIND_PLAN_MATRIX")]
    matrix: Option<PathBuf>,
    /// What each relay between the ends of a way adds, in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value = "0",
        value_parser = hop_cost,
        allow_negative_numbers = true,
        env = "TRADEWIND_PLAN_HOP_COST"
    )]
    hop_cost: f64,
    /// Relays at these places only, commas between them; a part of a name is enough where only one
    /// has it [default: all]
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        conflicts_with = "choose",
        env = "TRADEWIND_PLAN_RELAYS"
    )]
    relays: Vec<String>,
    /// Find the best K places for relays
    #[arg(long, value_name = "K", env = "TRADEWIND_PLAN_CHOOSE")]
    choose: Option<usize>,
    /// What if this link failed, in both directions; or this place with all its links (repeatable)
    #[arg(long, value_name = "A-B|A", env = "TRADEWIND_PLAN_CUT")]
    cut: Vec<String>,
    /// What the failure of each relay and of each link would cost
    #[arg(long, env = "TRADEWIND_PLAN_FAILURES")]
    failures: bool,
    /// Rows in tables
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10,
        env = "TRADEWIND_PLAN_TOP"
    )]
    top: usize,
    /// All pairs, in the JSON
    #[arg(long, requires = "json", env = "TRADEWIND_PLAN_PAIRS")]
    pairs: bool,
    /// As JSON
    #[arg(long, env = "TRADEWIND_PLAN_JSON")]
    json: bool,
}

fn hop_cost(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ms) if (0.0..=MAX_RTT_MS).contains(&ms) => Ok(ms),
        _ => Err("it must be a number of milliseconds, 0 or more".to_owned()),
    }
}

pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let (name, matrix) = matrix_args::read(args.matrix.as_deref())?;
    let cuts = cuts(&matrix, &args.cut)?;
    let mut bar = Bar::default();
    let placement = match args.choose {
        Some(k) if k == 0 || k > matrix.len() => {
            return Err(UsageError::new(format!(
                "--choose {k}: the matrix has {} places, of which at least one must have a relay",
                matrix.len()
            ))
            .into());
        }
        Some(k) => Some(placement::choose(
            &matrix,
            k,
            args.hop_cost,
            &mut |progress| bar.show(progress),
        )),
        None => None,
    };
    let relays = match &placement {
        Some(Placement { relays, .. }) => Some(relays.clone()),
        None => relays(&matrix, &args.relays)?,
    };
    let whole = WhatIf::new(&matrix, relays.as_deref(), args.hop_cost);
    let left = cuts.as_ref().map(|cuts| cuts.apply(&whole));
    let mut answer = Answer::new(&name, &matrix, &whole);
    if let Some(placement) = &placement {
        answer.add_choice(&matrix, &whole, placement);
    }
    if let (Some(cuts), Some(left)) = (&cuts, &left) {
        answer.add_cut(&matrix, cuts, left, args.pairs);
    }
    if args.failures {
        let failures = left
            .as_ref()
            .unwrap_or(&whole)
            .failures(&mut |progress| bar.show(progress));
        answer.add_failures(&matrix, failures);
    }
    drop(bar);
    if args.pairs {
        answer.add_pairs(&matrix, &whole);
        // There may be hundreds of thousands, and each would take a dozen lines.
        return show::json_line(&answer);
    }
    if args.json {
        return show::json(&answer);
    }
    display::print(&answer, &matrix, &whole, args.top)
}

fn relays(matrix: &RttMatrix, names: &[String]) -> anyhow::Result<Option<Vec<usize>>> {
    let mut relays = Vec::new();
    for name in names {
        let relay = place(matrix, name, "--relays")?;
        if relays.contains(&relay) {
            let name = &matrix.names()[relay];
            return Err(UsageError::new(format!("--relays names {name:?} twice")).into());
        }
        relays.push(relay);
    }
    Ok((!relays.is_empty()).then_some(relays))
}

/// What `--cut` names.
#[derive(Debug, Default)]
struct Cuts {
    links: Vec<(usize, usize)>,
    places: Vec<usize>,
}

impl Cuts {
    fn apply(&self, whole: &WhatIf) -> WhatIf {
        whole.without(&self.links, &self.places)
    }
}

fn cuts(matrix: &RttMatrix, texts: &[String]) -> anyhow::Result<Option<Cuts>> {
    let mut cuts = Cuts::default();
    for text in texts {
        match part(matrix, text).with_context(|| format!("--cut {text:?}"))? {
            Part::Place(place) => cuts.places.push(place),
            Part::Link(a, b) => {
                if matrix.cell(a, b).is_none() && matrix.cell(b, a).is_none() {
                    let (a, b) = (&matrix.names()[a], &matrix.names()[b]);
                    return Err(UsageError::new(format!(
                        "--cut {text:?}: the matrix has no link between {a:?} and {b:?}"
                    ))
                    .into());
                }
                cuts.links.push((a, b));
            }
        }
    }
    Ok((!texts.is_empty()).then_some(cuts))
}

/// How far long work has come, on standard error where that is a terminal.
#[derive(Debug, Default)]
struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    fn show(&mut self, progress: Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            // It hides itself where there is no terminal.
            ProgressBar::new(0).with_style(style)
        });
        bar.set_message(match progress.stage {
            Stage::Adding => "adding relays",
            Stage::Exchanging => "exchanging relays",
            Stage::ExchangingTwo => "exchanging two at once",
            Stage::Failures => "trying failures",
        });
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
