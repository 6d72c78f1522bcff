//! Many rows with one statement. Each statement costs a turn of the database's thread, which takes longer than the work
//! on most rows.

/// Rows of one statement at most: 40 columns of them stay far below SQLite's 32,766 parameters.
const MOST: usize = 128;

/// Cuts rows into parts of so many that few different statements are ever prepared: powers of two.
pub(super) fn parts<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        if rows.is_empty() {
            return None;
        }
        let (part, rest) = rows.split_at(MOST.min(1 << rows.len().ilog2()));
        rows = rest;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_powers_of_two_and_leave_nothing_out() {
        for count in [0, 1, 2, 3, 127, 128, 129, 511] {
            let rows: Vec<usize> = (0..count).collect();
            let parts: Vec<&[usize]> = parts(&rows).collect();
            assert!(
                parts
                    .iter()
                    .all(|part| part.len().is_power_of_two() && part.len() <= MOST)
            );
            assert_eq!(parts.concat(), rows);
        }
    }
}
