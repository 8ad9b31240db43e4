//! Matrices of round-trip times on the command line, their places and links.

use std::path::Path;

use anyhow::Context as _;
use tradewind_routing::RttMatrix;
use tradewind_service::exit::{UsageError, usage};

/// The tables the project ships, smaller first: what reports call them, how many places they have, and
/// the tables; see `cli/data/README.md`.
const BUILT_IN: [(&str, usize, &str); 2] = [
    ("built-in", 12, include_str!("../data/regions.csv")),
    (
        "built-in, more regions",
        24,
        include_str!("../data/more_regions.csv"),
    ),
];

/// Reads the matrix in `file`, or the built-in one; gives its name too.
///
/// All errors are the caller's, as everywhere here.
pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<(String, RttMatrix)> {
    let Some(file) = file else {
        return built_in(0);
    };
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the matrix {name}"))
        .map_err(usage)?;
    parse(name, &text)
}

/// The smallest built-in matrix of so many places, or the largest there is.
pub(crate) fn built_in(places: usize) -> anyhow::Result<(String, RttMatrix)> {
    let (name, _, text) = BUILT_IN
        .iter()
        .find(|(_, size, _)| *size >= places)
        .unwrap_or(&BUILT_IN[BUILT_IN.len() - 1]);
    parse((*name).to_owned(), text)
}

fn parse(name: String, text: &str) -> anyhow::Result<(String, RttMatrix)> {
    let matrix = RttMatrix::parse(text)
        .with_context(|| format!("the matrix {name} cannot be used"))
        .map_err(usage)?;
    Ok((name, matrix))
}

/// Finds the place that was named with `option`.
pub(crate) fn place(matrix: &RttMatrix, name: &str, option: &str) -> anyhow::Result<usize> {
    matrix
        .index_of(name.trim())
        .with_context(|| option.to_owned())
        .map_err(usage)
}

/// Finds the two places in `A-B`, where names may themselves have hyphens: the only hyphen with a
/// place on either side of it is meant, whole names before parts of names.
pub(crate) fn link(matrix: &RttMatrix, text: &str) -> anyhow::Result<(usize, usize)> {
    let is_whole = |name: &str| matrix.names().iter().any(|known| known == name);
    let mut fits = Vec::new();
    // Of the reading with most whole names: the likeliest one.
    let mut reason: Option<(usize, anyhow::Error)> = None;
    for (at, _) in text.match_indices('-') {
        let (a, b) = (text[..at].trim(), text[at + 1..].trim());
        if a.is_empty() || b.is_empty() {
            continue;
        }
        let whole = usize::from(is_whole(a)) + usize::from(is_whole(b));
        let error = match matrix
            .index_of(a)
            .and_then(|a| Ok((a, matrix.index_of(b)?)))
        {
            Ok((i, j)) if i != j => {
                fits.push((whole, (i, j)));
                continue;
            }
            Ok((i, _)) => {
                let name = &matrix.names()[i];
                UsageError::new(format!("{name:?} has no link to itself")).into()
            }
            Err(error) => usage(error),
        };
        if reason.as_ref().is_none_or(|(most, _)| whole > *most) {
            reason = Some((whole, error));
        }
    }
    let best = fits.iter().map(|(whole, _)| *whole).max();
    fits.retain(|(whole, _)| Some(*whole) == best);
    fits.dedup();
    let wrong = |text: &str| UsageError::new(text).into();
    match (fits.as_slice(), reason) {
        ([(_, pair)], _) => Ok(*pair),
        ([], Some((_, error))) => Err(error),
        ([], None) => Err(wrong("there must be two places with a hyphen between them")),
        _ => Err(wrong(
            "it can be read in several ways: give the whole names",
        )),
    }
}

/// A link, or a place and all its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Link(usize, usize),
    Place(usize),
}

/// Finds what is meant by `A-B` or `A`. A whole name is that place, hyphens or not; else a link
/// comes before a part of a name.
pub(crate) fn part(matrix: &RttMatrix, text: &str) -> anyhow::Result<Part> {
    let name = text.trim();
    let lower = name.to_lowercase();
    let is_whole = |known: &String| known.to_lowercase() == lower;
    if !name.contains('-') || matrix.names().iter().any(is_whole) {
        return matrix.index_of(name).map(Part::Place).map_err(usage);
    }
    match link(matrix, name) {
        Ok((a, b)) => Ok(Part::Link(a, b)),
        Err(error) => matrix.index_of(name).map(Part::Place).map_err(|_| error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hyphen_joins_two_places_unless_it_is_in_the_name_of_one() {
        let matrix =
            RttMatrix::parse("x,eu-1,eu-west-1,us\neu-1,0,1,2\neu-west-1,1,0,3\nus,2,3,0\n")
                .unwrap();
        for (text, meant) in [
            ("eu-1", Part::Place(0)),
            (" EU-West-1 ", Part::Place(1)),
            ("eu-west", Part::Place(1)),
            ("us", Part::Place(2)),
            ("eu-1-us", Part::Link(0, 2)),
            ("us-eu-west-1", Part::Link(2, 1)),
            ("eu-1-eu-west-1", Part::Link(0, 1)),
        ] {
            assert_eq!(part(&matrix, text).unwrap(), meant, "{text}");
        }
        for (text, says) in [
            ("asia", "no place is called \"asia\""),
            ("eu-1-asia", "asia"),
            ("us-us", "itself"),
            ("", "no place"),
        ] {
            let error = part(&matrix, text).unwrap_err();
            assert_eq!(tradewind_service::exit::code(&error), 2);
            assert!(error.to_string().contains(says), "{text:?}: {error}");
        }
    }
}
