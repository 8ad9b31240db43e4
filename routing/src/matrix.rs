//! Square matrices of round-trip times between named places, as CSV.
//!
//! The first row and the first column name the places, in the same order; the cell in row A and
//! column B is the round-trip time A→B→A in milliseconds as measured from A. An empty cell is
//! unknown, the diagonal is ignored.

use std::{collections::BTreeMap, io::Read, time::Duration};

/// The largest round-trip time that is believed, in milliseconds: one hour. Beyond it a file is
/// most likely not in milliseconds.
pub const MAX_RTT_MS: f64 = 3_600_000.0;

/// Round-trip times between named places; cells may be unknown and need not be symmetric.
#[derive(Debug, Clone, PartialEq)]
pub struct RttMatrix {
    names: Vec<String>,
    /// Row-major, in milliseconds; `None` is unknown. The diagonal is `Some(0.0)`.
    cells: Vec<Option<f64>>,
}

/// Why a matrix was refused. Rows and columns are counted among the places, from 1.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MatrixError {
    /// The text is not CSV at all.
    #[error("not a CSV file: {reason}; a square table of round-trip times is expected")]
    Csv {
        /// What the CSV reader says.
        reason: String,
    },
    /// There is no header, or no place in it.
    #[error("no places: the first row must name the columns, each further row one place")]
    NoPlaces,
    /// A name in the header is empty.
    #[error("column {column} has no name in the first row; name every column")]
    EmptyColumnName {
        /// Number of the column, from 1.
        column: usize,
    },
    /// Two columns have the same name.
    #[error("columns {first} and {second} are both named {name:?}; names must differ")]
    DuplicateName {
        /// The name.
        name: String,
        /// Number of the first column with it, from 1.
        first: usize,
        /// Number of the second column with it, from 1.
        second: usize,
    },
    /// There are fewer rows than columns.
    #[error(
        "not square: {columns} columns but {rows} rows; row {} ({missing:?}) is missing",
        rows + 1
    )]
    MissingRow {
        /// How many columns there are.
        columns: usize,
        /// How many rows there are.
        rows: usize,
        /// The name of the first column without a row.
        missing: String,
    },
    /// There are more rows than columns.
    #[error("not square: row {row} ({name:?}) is one more than the {columns} columns")]
    ExtraRow {
        /// Number of the row, from 1.
        row: usize,
        /// Its name.
        name: String,
        /// How many columns there are.
        columns: usize,
    },
    /// Row and column of the same number have different names.
    #[error(
        "row {number} is named {row:?} but column {number} is named {column:?}; rows and columns \
         must have the same names in the same order"
    )]
    NameMismatch {
        /// Number of row and column, from 1.
        number: usize,
        /// The row's name.
        row: String,
        /// The column's name.
        column: String,
    },
    /// A row has more or fewer cells than there are columns.
    #[error("row {row} ({name:?}) has {cells} cells, but there are {columns} columns")]
    RowLength {
        /// Number of the row, from 1.
        row: usize,
        /// Its name.
        name: String,
        /// How many cells it has, without its name.
        cells: usize,
        /// How many columns there are.
        columns: usize,
    },
    /// A cell cannot be a round-trip time.
    #[error(
        "row {row} ({row_name:?}), column {column} ({column_name:?}): {value:?} {problem}; give \
         milliseconds, or nothing when unknown"
    )]
    BadCell {
        /// Number of the row, from 1.
        row: usize,
        /// Its name.
        row_name: String,
        /// Number of the column, from 1.
        column: usize,
        /// Its name.
        column_name: String,
        /// The cell's text.
        value: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: &'static str,
    },
}

/// Why a name does not choose one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No place is called so.
    #[error("no place is called {name:?}; there are: {}", listed(candidates))]
    Unknown {
        /// What was asked for.
        name: String,
        /// All there are.
        candidates: Vec<String>,
    },
    /// Several places fit.
    #[error(
        "{name:?} could be any of: {}; give more of the name",
        listed(candidates)
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Those that fit.
        candidates: Vec<String>,
    },
}

impl RttMatrix {
    /// Reads a matrix from CSV text. A byte order mark, CRLF, blank lines at the end and spaces
    /// around cells are tolerated.
    ///
    /// ```
    /// let matrix = tradewind_routing::RttMatrix::parse(
    ///     "src,Perth,Hong Kong\nPerth,0,94.5\nHong Kong,95.5,0\n",
    /// )?;
    /// assert_eq!(matrix.index_of("hong")?, 1);
    /// assert_eq!(matrix.direct_rtt(0, 1), Some(95.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MatrixError`] naming the row and the column.
    pub fn parse(text: &str) -> Result<Self, MatrixError> {
        Self::read(text.as_bytes())
    }

    /// Reads a matrix from anything that gives CSV in UTF-8; see [`RttMatrix::parse`].
    ///
    /// # Errors
    /// [`MatrixError`] naming the row and the column.
    pub fn read(reader: impl Read) -> Result<Self, MatrixError> {
        let mut records = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(reader)
            .into_records();
        let header = match records.next() {
            Some(header) => header.map_err(csv_error)?,
            None => return Err(MatrixError::NoPlaces),
        };
        let names = column_names(&header)?;
        let n = names.len();
        let mut cells = Vec::with_capacity(n * n);
        let mut rows = 0;
        for record in records {
            let record = record.map_err(csv_error)?;
            // A spreadsheet's last lines: separators and nothing else.
            if rows == n && record.iter().all(str::is_empty) {
                continue;
            }
            parse_row(&names, rows, &record, &mut cells)?;
            rows += 1;
        }
        if rows < n {
            return Err(MatrixError::MissingRow {
                columns: n,
                rows,
                missing: names[rows].clone(),
            });
        }
        Ok(Self { names, cells })
    }

    /// The places' names, as in the file.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many places there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no place (never so for a matrix that was parsed).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Finds a place: by its exact name, else by the only name that is equal but for case, else by
    /// the only name that contains `name` (case ignored).
    ///
    /// # Errors
    /// [`NameError`] with the names that could be meant.
    pub fn index_of(&self, name: &str) -> Result<usize, NameError> {
        if let Some(index) = self.names.iter().position(|known| known == name) {
            return Ok(index);
        }
        let wanted = name.trim().to_lowercase();
        let lower: Vec<String> = self.names.iter().map(|name| name.to_lowercase()).collect();
        let fitting = |fits: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..lower.len()).filter(|&i| fits(&lower[i])).collect()
        };
        let mut found = fitting(&|known| known == wanted);
        if found.is_empty() && !wanted.is_empty() {
            found = fitting(&|known| known.contains(&wanted));
        }
        let name = name.to_owned();
        match found[..] {
            [only] => Ok(only),
            [] => Err(NameError::Unknown {
                name,
                candidates: self.names.clone(),
            }),
            _ => Err(NameError::Ambiguous {
                name,
                candidates: found.iter().map(|&i| self.names[i].clone()).collect(),
            }),
        }
    }

    /// The cell in row `i`, column `j`, in milliseconds; `None` is unknown, the diagonal is 0.
    ///
    /// # Panics
    /// When an index is out of range, as everywhere in this type.
    #[must_use]
    pub fn cell(&self, i: usize, j: usize) -> Option<f64> {
        let n = self.len();
        assert!(
            i < n && j < n,
            "place ({i}, {j}) outside of a matrix of {n}"
        );
        self.cells[i * n + j]
    }

    /// The one-way delay i→j: half the cell in row `i`, column `j`.
    #[must_use]
    pub fn one_way(&self, i: usize, j: usize) -> Option<Duration> {
        self.cell(i, j)
            .map(|ms| Duration::from_secs_f64(ms / 2_000.0))
    }

    /// The round-trip time by the direct way, in milliseconds: the mean of both cells, since the
    /// way there takes half of one and the way back half of the other. `None` when either is
    /// unknown.
    #[must_use]
    pub fn direct_rtt(&self, i: usize, j: usize) -> Option<f64> {
        Some((self.cell(i, j)? + self.cell(j, i)?) / 2.0)
    }

    /// The matrix of the chosen places only, in the order given.
    #[must_use]
    pub fn select(&self, places: &[usize]) -> Self {
        let names = places.iter().map(|&i| self.names[i].clone()).collect();
        let cells = places
            .iter()
            .flat_map(|&i| places.iter().map(move |&j| self.cell(i, j)))
            .collect();
        Self { names, cells }
    }

    /// The matrix as CSV, readable by [`RttMatrix::parse`]: unknown cells are empty.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = String::from("src");
        for name in &self.names {
            text.push(',');
            text.push_str(&quoted(name));
        }
        text.push('\n');
        for (i, name) in self.names.iter().enumerate() {
            text.push_str(&quoted(name));
            for j in 0..self.len() {
                text.push(',');
                if let Some(ms) = self.cell(i, j) {
                    text.push_str(&ms.to_string());
                }
            }
            text.push('\n');
        }
        text
    }
}

fn csv_error(error: csv::Error) -> MatrixError {
    MatrixError::Csv {
        reason: error.to_string(),
    }
}

fn column_names(header: &csv::StringRecord) -> Result<Vec<String>, MatrixError> {
    let names: Vec<String> = header.iter().skip(1).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(MatrixError::NoPlaces);
    }
    let mut seen = BTreeMap::new();
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(MatrixError::EmptyColumnName { column: index + 1 });
        }
        if let Some(first) = seen.insert(name, index) {
            return Err(MatrixError::DuplicateName {
                name: name.clone(),
                first: first + 1,
                second: index + 1,
            });
        }
    }
    Ok(names)
}

fn parse_row(
    names: &[String],
    row: usize,
    record: &csv::StringRecord,
    cells: &mut Vec<Option<f64>>,
) -> Result<(), MatrixError> {
    let name = record.get(0).unwrap_or_default();
    let columns = names.len();
    if row >= columns {
        return Err(MatrixError::ExtraRow {
            row: row + 1,
            name: name.to_owned(),
            columns,
        });
    }
    if name != names[row] {
        return Err(MatrixError::NameMismatch {
            number: row + 1,
            row: name.to_owned(),
            column: names[row].clone(),
        });
    }
    if record.len() != columns + 1 {
        return Err(MatrixError::RowLength {
            row: row + 1,
            name: name.to_owned(),
            cells: record.len() - 1,
            columns,
        });
    }
    for (column, text) in record.iter().skip(1).enumerate() {
        let cell = if column == row {
            Ok(Some(0.0))
        } else {
            parse_cell(text)
        };
        cells.push(cell.map_err(|problem| MatrixError::BadCell {
            row: row + 1,
            row_name: name.to_owned(),
            column: column + 1,
            column_name: names[column].clone(),
            value: text.to_owned(),
            problem,
        })?);
    }
    Ok(())
}

fn parse_cell(text: &str) -> Result<Option<f64>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let ms: f64 = text.parse().map_err(|_| "is not a number")?;
    if !ms.is_finite() {
        return Err("is not a finite number");
    }
    if ms < 0.0 {
        return Err("is negative");
    }
    if ms > MAX_RTT_MS {
        return Err("is more than an hour");
    }
    Ok(Some(ms))
}

fn quoted(name: &str) -> String {
    if name.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

fn listed(names: &[String]) -> String {
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        RttMatrix::parse(text)
            .expect_err("should be refused")
            .to_string()
    }

    #[test]
    fn a_well_formed_file_is_read_with_its_unknown_cells() {
        let m = RttMatrix::parse("src,a,b,c\na,0,10,\nb,12,,7.5\nc,1,2,x\n").unwrap();
        assert_eq!(m.names(), ["a", "b", "c"]);
        assert_eq!(m.cell(0, 1), Some(10.0));
        assert_eq!(m.cell(0, 2), None);
        assert_eq!(m.cell(1, 1), Some(0.0));
        assert_eq!(
            m.cell(2, 2),
            Some(0.0),
            "the diagonal is ignored whatever it holds"
        );
        assert_eq!(m.one_way(1, 2), Some(Duration::from_micros(3_750)));
        assert_eq!(m.direct_rtt(0, 1), Some(11.0));
        assert_eq!(m.direct_rtt(0, 2), None);
    }

    #[test]
    fn a_byte_order_mark_crlf_spaces_and_trailing_blank_rows_are_tolerated() {
        let m = RttMatrix::parse("\u{feff}src, a ,b\r\na,0, 3\r\n b,4 ,0\r\n,,\r\n\r\n").unwrap();
        assert_eq!(m.names(), ["a", "b"]);
        assert_eq!(m.cell(0, 1), Some(3.0));
        let m = RttMatrix::parse("\u{feff}\"src\",\"x,y\",b\n\"x,y\",0,3\nb,4,0").unwrap();
        assert_eq!(m.names(), ["x,y", "b"]);
    }

    #[test]
    fn refusals_name_the_row_and_the_column() {
        let says = |text: &str, parts: &[&str]| {
            let message = refused(text);
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        };
        says("", &["no places"]);
        says("src\n", &["no places"]);
        says("src,a,b\n", &["not square", "row 1 (\"a\") is missing"]);
        says(
            "src,a,b\na,0,1\n",
            &["not square", "row 2 (\"b\") is missing"],
        );
        says("src,a\na,0\nb,1\n", &["not square", "row 2 (\"b\")"]);
        says(
            "src,a,b\nb,0,1\na,1,0\n",
            &["row 1", "\"b\"", "column 1", "\"a\""],
        );
        says(
            "src,a,b\na,0\nb,1,0\n",
            &["row 1 (\"a\")", "1 cells", "2 columns"],
        );
        says("src,a,b\na,0,1,2\nb,1,0\n", &["row 1 (\"a\")", "3 cells"]);
        says("src,a,a\na,0,1\na,1,0\n", &["columns 1 and 2", "\"a\""]);
        says("src,a,\na,0,1\n,1,0\n", &["column 2 has no name"]);
        says(
            "src,a,b\na,0,x\nb,1,0\n",
            &["row 1 (\"a\")", "column 2 (\"b\")", "\"x\""],
        );
        says(
            "src,a,b\na,0,1\nb,-1,0\n",
            &["row 2 (\"b\")", "column 1 (\"a\")", "negative"],
        );
        says(
            "src,a,b\na,0,NaN\nb,1,0\n",
            &["row 1", "column 2", "finite"],
        );
        says(
            "src,a,b\na,0,inf\nb,1,0\n",
            &["row 1", "column 2", "finite"],
        );
        says("src,a,b\na,0,1e12\nb,1,0\n", &["row 1", "column 2", "hour"]);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let error = RttMatrix::read(&b"src,a\na\xff,0\n"[..]).unwrap_err();
        assert!(matches!(error, MatrixError::Csv { .. }), "{error}");
    }

    #[test]
    fn places_are_found_by_exact_name_then_case_then_part() {
        let m = RttMatrix::parse(
            "s,Hong Kong,hong kong 2,Tokyo\nHong Kong,0,1,1\nhong kong 2,1,0,1\nTokyo,1,1,0",
        )
        .unwrap();
        assert_eq!(m.index_of("Hong Kong"), Ok(0));
        assert_eq!(
            m.index_of("hong kong"),
            Ok(0),
            "equal but for case beats part of a name"
        );
        assert_eq!(m.index_of("KYO"), Ok(2));
        assert_eq!(
            m.index_of("hong"),
            Err(NameError::Ambiguous {
                name: "hong".into(),
                candidates: vec!["Hong Kong".into(), "hong kong 2".into()],
            })
        );
        let unknown = m.index_of("Perth").unwrap_err().to_string();
        assert!(
            unknown.contains("Perth") && unknown.contains("Tokyo"),
            "{unknown}"
        );
        assert!(m.index_of("").is_err());
    }

    #[test]
    fn a_selection_keeps_the_order_asked_for() {
        let m = RttMatrix::parse("s,a,b,c\na,0,1,2\nb,3,0,4\nc,5,6,0")
            .unwrap()
            .select(&[2, 0]);
        assert_eq!(m.names(), ["c", "a"]);
        assert_eq!((m.cell(0, 1), m.cell(1, 0)), (Some(5.0), Some(2.0)));
    }

    #[test]
    fn shared_matrices_are_read_when_present() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
        let Ok(files) = std::fs::read_dir(folder) else {
            return;
        };
        for file in files.flatten() {
            if file
                .path()
                .extension()
                .is_some_and(|ending| ending == "csv")
            {
                let text = std::fs::read_to_string(file.path()).unwrap();
                let m = RttMatrix::parse(&text).unwrap_or_else(|e| panic!("{file:?}: {e}"));
                assert!(m.len() >= 19);
                assert_eq!(RttMatrix::parse(&m.to_csv()).unwrap(), m);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(
            cells in proptest::collection::vec(proptest::option::of(0.0..1e6f64), 9),
            name in "[a-z,\" ]{0,5}x",
        ) {
            let names = vec!["p".to_owned(), "q".to_owned(), name.trim().to_owned()];
            let cells = (0..9).map(|k| if k % 4 == 0 { Some(0.0) } else { cells[k] }).collect();
            let m = RttMatrix { names, cells };
            prop_assert_eq!(RttMatrix::parse(&m.to_csv()).unwrap(), m);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,60}", bytes in any::<Vec<u8>>()) {
            let _ = RttMatrix::parse(&text);
            let _ = RttMatrix::read(&bytes[..]);
        }
    }
}
