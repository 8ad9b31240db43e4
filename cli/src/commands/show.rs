//! Tables and JSON for standard output.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// Writes a line to standard output. Gives an error when nobody reads any more (`| head`).
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    out.flush()
}

/// One JSON document, readable.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// One JSON document in one line: for streams of them.
pub(crate) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string(value)?)?)
}

/// A table: first column left, the others as told (`true` is right).
pub(crate) fn table(head: &[(&str, bool)], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().map(|(name, _)| *name));
    for row in rows {
        table.add_row(row);
    }
    for (index, (_, right)) in head.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if *right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let text: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    Ok(line(text.join("\n"))?)
}

/// Milliseconds with as many places as they deserve.
pub(crate) fn ms(value: f64) -> String {
    if value.abs() < 10.0 {
        format!("{value:.2} ms")
    } else {
        format!("{value:.1} ms")
    }
}

/// As [`ms`].
pub(crate) fn duration(value: Duration) -> String {
    ms(millis(value))
}

/// In milliseconds.
pub(crate) fn millis(value: Duration) -> f64 {
    value.as_secs_f64() * 1e3
}

/// A number of milliseconds in an answer; a dash where it is unknown.
pub(crate) fn ms_in(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), ms)
}

/// A text in an answer; a dash where there is none.
pub(crate) fn text_in(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".to_owned(),
    }
}

/// Local time cannot be known for sure: seconds since 1970 as a date in UTC.
pub(crate) fn unix_time(seconds: u64) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    httpdate::fmt_http_date(at)
}

/// Whether a flag is set in an answer.
pub(crate) fn is(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool) == Some(true)
}

/// The members of a list in an answer; none where there is no list.
pub(crate) fn members<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Texts in an answer, with commas between them.
pub(crate) fn texts(value: Option<&Value>, between: &str) -> String {
    value
        .and_then(Value::as_array)
        .map(|list| {
            let texts: Vec<_> = list.iter().filter_map(Value::as_str).collect();
            texts.join(between)
        })
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}
