//! What a person sees: progress, tables, errors. Data goes to standard output, everything else to standard error.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar on standard error; silent where that is no terminal.
pub fn progress(steps: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("{msg:>24} {wide_bar} {pos}/{len}  {eta} left");
    bar.set_style(style.expect("a valid template").progress_chars("━━╌"));
    bar.set_message(what.to_owned());
    bar
}

/// Writes a line to standard output. A reader that has gone away (`| head`) is no error.
///
/// # Errors
/// When standard output fails otherwise.
pub fn line(text: &str) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// An error and its causes, for a person.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    if source.is_some() {
        text.push_str("\n\nCaused by:");
    }
    while let Some(cause) = source {
        let _ = write!(text, "\n    {cause}");
        source = cause.source();
    }
    text
}

/// A table with aligned columns: the first to the left, the others to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            rows: vec![headings.into_iter().map(str::to_owned).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) -> &mut Self {
        self.rows.push(cells.into_iter().collect());
        self
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (i, row) in self.rows.iter().enumerate() {
            let mut text = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    let _ = write!(text, "{cell:<width$}");
                } else {
                    let _ = write!(text, "  {cell:>width$}");
                }
            }
            writeln!(f, "{}", text.trim_end())?;
            if i == 0 {
                writeln!(
                    f,
                    "{}",
                    "─".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1))
                )?;
            }
        }
        Ok(())
    }
}

/// A number of multiply-adds, for a person.
pub fn macs(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} GMAC", n / 1e9),
        n if n >= 1e6 => format!("{:.2} MMAC", n / 1e6),
        n => format!("{:.1} kMAC", n / 1e3),
    }
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_names_left_and_numbers_right() {
        let mut table = Table::new(["exit", "share"]);
        table
            .row(["first".into(), "7 %".into()])
            .row(["2".into(), "93.5 %".into()]);
        assert_eq!(
            table.to_string(),
            "exit    share\n─────────────\nfirst     7 %\n2      93.5 %\n"
        );
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        let text = explain(&Outer(io::Error::other("inner")));
        assert_eq!(text, "error: outer\n\nCaused by:\n    inner");
    }
}
