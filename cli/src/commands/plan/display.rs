//! The answer as tables.

use tradewind_routing::{RttMatrix, WhatIf};

use super::{
    answer::{self, Answer, Choice, Cut, FailureCost, FailureLists, Totals},
    show,
};

/// Prints it with at most `top` rows per table.
pub(super) fn print(
    answer: &Answer<'_>,
    matrix: &RttMatrix,
    whole: &WhatIf,
    top: usize,
) -> anyhow::Result<()> {
    let relays = match answer.relays.len() {
        all if all == answer.place_count => "a relay at each".to_owned(),
        1 => "a relay at 1 of them".to_owned(),
        some => format!("relays at {some} of them"),
    };
    show::line(format!(
        "{} places of matrix {}, {relays}, {} per relay crossed",
        answer.place_count,
        answer.matrix,
        show::ms(answer.hop_cost_ms),
    ))?;
    totals(&answer.totals)?;
    if let Some(choice) = &answer.choice {
        chosen(choice)?;
    }
    crossed(&answer.totals)?;
    savings(answer, matrix, whole, top)?;
    if let Some(left) = &answer.cut {
        cut(left)?;
    }
    if let Some(lists) = &answer.failures {
        failures(lists, top)?;
    }
    Ok(())
}

fn totals(totals: &Totals) -> anyhow::Result<()> {
    show::line(format!(
        "{} of {} ordered pairs have a way, {} of them a direct one",
        totals.pair_count,
        totals.pair_count + totals.unreachable_count,
        totals.direct_count,
    ))?;
    show::line(format!(
        "of these {} ({}) have a way more than 5 % shorter; {} of all latency is removed",
        totals.improved_over_5pct,
        share(totals.improved_over_5pct, totals.direct_count),
        percent(totals.latency_removed_pct),
    ))?;
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), show::ms);
    Ok(show::line(format!(
        "saving per pair: median {}, p99 {}",
        ms(totals.median_saving_ms),
        ms(totals.p99_saving_ms),
    ))?)
}

fn chosen(choice: &Choice<'_>) -> anyhow::Result<()> {
    show::line(format!(
        "\nthe best places for relays (everywhere: {} of latency removed)",
        percent(choice.everywhere_latency_removed_pct)
    ))?;
    let rows = choice.steps.iter().enumerate().map(|(index, step)| {
        vec![
            (index + 1).to_string(),
            step.relay.to_owned(),
            percent(step.latency_removed_pct),
            step.improved_over_5pct.to_string(),
            step.pair_count.to_string(),
        ]
    });
    show::table(
        &[
            ("RELAYS", true),
            ("WITH", false),
            ("REMOVED", true),
            ("IMPROVED", true),
            ("PAIRS", true),
        ],
        rows.collect(),
    )
}

fn crossed(totals: &Totals) -> anyhow::Result<()> {
    show::line("")?;
    let rows = totals.pairs_by_relays_crossed.iter().enumerate();
    let rows = rows.map(|(crossed, &pairs)| {
        vec![
            crossed.to_string(),
            pairs.to_string(),
            share(pairs, totals.pair_count),
        ]
    });
    show::table(
        &[("CROSSED", true), ("PAIRS", true), ("SHARE", true)],
        rows.collect(),
    )
}

fn savings(
    answer: &Answer<'_>,
    matrix: &RttMatrix,
    whole: &WhatIf,
    top: usize,
) -> anyhow::Result<()> {
    let saving = |(from, to): (usize, usize)| {
        Some(whole.direct_ms(from, to)? - answer.ways.best_ms(from, to)?)
    };
    let mut gaining: Vec<_> = answer::pairs(whole.len(), &[])
        .filter_map(|pair| Some((pair, saving(pair).filter(|saved| *saved > 0.0)?)))
        .collect();
    gaining.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    if gaining.is_empty() || top == 0 {
        return Ok(());
    }
    show::line(format!(
        "\n{}",
        heading("largest savings", gaining.len(), top)
    ))?;
    let rows = gaining.iter().take(top).filter_map(|&((from, to), saved)| {
        let pair = answer::pair(matrix, whole, &answer.ways, from, to)?;
        let direct = pair.direct_ms?;
        Some(vec![
            pair.from.to_owned(),
            pair.to.to_owned(),
            show::ms(direct),
            show::ms(pair.best_ms),
            show::ms(saved),
            percent(Some(100.0 * saved / direct)),
            pair.path[1..pair.path.len() - 1].join(" -> "),
        ])
    });
    show::table(
        &[
            ("FROM", false),
            ("TO", false),
            ("DIRECT", true),
            ("BEST", true),
            ("SAVES", true),
            ("", true),
            ("OVER", false),
        ],
        rows.collect(),
    )
}

fn cut(cut: &Cut<'_>) -> anyhow::Result<()> {
    let links = cut.links.iter().map(|[a, b]| format!("{a} - {b}"));
    let places = cut.places.iter().map(|place| (*place).to_owned());
    let parts: Vec<_> = links.chain(places).collect();
    show::line(format!("\nwithout {}", parts.join(", ")))?;
    totals(&cut.totals)?;
    Ok(show::line(format!(
        "{} pairs go a longer way, {} more all together; {} have no way left",
        cut.worsened_count,
        show::ms(cut.added_ms),
        cut.cut_off_count,
    ))?)
}

fn failures(lists: &FailureLists<'_>, top: usize) -> anyhow::Result<()> {
    let row = |name: String, cost: &FailureCost| {
        vec![
            name,
            cost.pair_count.to_string(),
            show::ms(cost.added_ms),
            cost.cut_off_count.to_string(),
        ]
    };
    let relays = lists.relays.iter().take(top);
    let relays: Vec<_> = relays
        .map(|failure| row(failure.relay.to_owned(), &failure.cost))
        .collect();
    let links = lists.links.iter().take(top);
    let links: Vec<_> = links
        .map(|failure| row(failure.link.join(" - "), &failure.cost))
        .collect();
    for (what, all, rows) in [
        ("dearest failures of relays", lists.relays.len(), relays),
        ("dearest failures of links", lists.links.len(), links),
    ] {
        show::line(format!("\n{}", heading(what, all, top)))?;
        show::table(
            &[
                ("FAILS", false),
                ("PAIRS", true),
                ("ADDED", true),
                ("CUT OFF", true),
            ],
            rows,
        )?;
    }
    Ok(())
}

fn heading(what: &str, all: usize, top: usize) -> String {
    if all > top {
        format!("{what} ({top} of {all})")
    } else {
        what.to_owned()
    }
}

fn share(part: usize, of: usize) -> String {
    percent((of > 0).then(|| 100.0 * part as f64 / of as f64))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} %"))
}
