//! Decision records: `docs/adr/NNNN-title.md`, numbered from 0001 without a gap, one page each.

use std::path::Path;

use anyhow::{Context, Result};

/// Words of a record. A decision that takes more is several decisions, or a design document.
const MAX_WORDS: usize = 600;

/// What is wrong with the records in `folder`, one line each.
///
/// # Errors
/// The folder or a record cannot be read.
pub fn check(folder: &Path) -> Result<Vec<String>> {
    let unreadable = || format!("{} cannot be read", folder.display());
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        records.push((
            path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            text,
        ));
    }
    records.sort();
    Ok(problems(&records))
}

/// `records`: file names with their texts, sorted.
fn problems(records: &[(String, String)]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expected = 1;
    for (name, text) in records {
        let Some(number) = number(name) else {
            problems.push(format!("{name}: a record is called NNNN-title.md"));
            continue;
        };
        if number != expected {
            problems.push(format!("{name}: the next number is {expected:04}"));
        }
        expected = number + 1;
        if !text.starts_with(&format!("# {number:04}: ")) {
            problems.push(format!("{name}: its first line is `# {number:04}: title`"));
        }
        for line in ["- Date: ", "- Status: "] {
            if !text.lines().any(|l| l.starts_with(line)) {
                problems.push(format!("{name}: has no line `{line}…`"));
            }
        }
        let words = text.split_whitespace().count();
        if words > MAX_WORDS {
            problems.push(format!(
                "{name}: {words} words, at most {MAX_WORDS}: a record is one page"
            ));
        }
    }
    problems
}

/// The number of `NNNN-title.md`.
fn number(name: &str) -> Option<usize> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let digits = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
    if digits && !title.is_empty() {
        number.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> (String, String) {
        (
            name.into(),
            format!("# {}: Title\n\n- Date: 2026-11-22\n- Status: accepted\n", &name[..4]),
        )
    }

    fn problems_of(names: &[&str]) -> Vec<String> {
        problems(&names.iter().map(|name| record(name)).collect::<Vec<_>>())
    }

    #[test]
    fn consecutive_records_pass() {
        assert!(problems_of(&["0001-a.md", "0002-b.md", "0003-c.md"]).is_empty());
    }

    #[test]
    fn a_number_that_is_skipped_or_used_twice_is_named() {
        assert_eq!(
            problems_of(&["0001-a.md", "0003-c.md"]),
            ["0003-c.md: the next number is 0002"]
        );
        assert_eq!(
            problems_of(&["0001-a.md", "0001-b.md"]),
            ["0001-b.md: the next number is 0002"]
        );
        assert_eq!(problems_of(&["0000-a.md"]), ["0000-a.md: the next number is 0001"]);
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["notes.md", "001-a.md", "0001-.md", "0001-a.txt", "000a-a.md"] {
            assert_eq!(
                problems_of(&[name]),
                [format!("{name}: a record is called NNNN-title.md")]
            );
        }
    }

    #[test]
    fn a_record_without_its_heading_date_or_status_or_of_more_than_a_page_is_named() {
        let long = format!("# 0002: B\n- Date: x\n- Status: x\n{}", "word ".repeat(MAX_WORDS));
        let records = [
            ("0001-a.md".to_owned(), "# A\n".to_owned()),
            ("0002-b.md".to_owned(), long),
        ];
        assert_eq!(problems(&records).len(), 4);
    }
}
