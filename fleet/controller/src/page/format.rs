//! Numbers and times as people read them.

/// Keeps a number and its unit together, as close as type is set.
const THIN: char = '\u{202f}';

/// A share as a percentage with one decimal.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > -0.1 && p < 0.0 => format!(">{THIN}\u{2212}0.1{THIN}%"),
        p if p < 0.0 => format!("\u{2212}{}", percent(-share)),
        p if p > 0.0 && p < 0.1 => format!("<{THIN}0.1{THIN}%"),
        p if p >= 99.95 => format!("{p:.0}{THIN}%"),
        p => format!("{p:.1}{THIN}%"),
    }
}

/// A share as a whole percentage.
pub(super) fn percent_round(share: f64) -> String {
    format!("{:.0}{THIN}%", share * 100.0)
}

/// A count with its digits in groups of three.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(THIN);
        }
        grouped.push(digit);
    }
    grouped
}

/// A number of bytes.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes}{THIN}B"),
        1000..1_000_000 => format!("{:.1}{THIN}kB", bytes as f64 / 1e3),
        _ => format!("{:.1}{THIN}MB", bytes as f64 / 1e6),
    }
}

/// Multiply-adds.
pub(super) fn macs(macs: u64) -> String {
    match macs {
        0..1_000_000 => format!("{:.1}{THIN}kMAC", macs as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}{THIN}MMAC", macs as f64 / 1e6),
        _ => format!("{:.2}{THIN}GMAC", macs as f64 / 1e9),
    }
}

/// How long ago something was, in the largest unit that fits.
pub(super) fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then) / 1000;
    match seconds {
        0..2 => "now".to_owned(),
        2..60 => format!("{seconds}{THIN}s ago"),
        60..3600 => format!("{}{THIN}min ago", seconds / 60),
        3600..172_800 => format!("{}{THIN}h ago", seconds / 3600),
        _ => format!("{}{THIN}days ago", seconds / 86_400),
    }
}

/// A short stretch of time, which may be negative: `1.25 ms`, `4.5 µs`.
pub(super) fn milliseconds(ms: f64) -> String {
    if ms.abs() < 0.1 {
        format!("{:.1}{THIN}µs", ms * 1e3)
    } else {
        format!("{ms:.2}{THIN}ms")
    }
}

/// A time of day and a date, for machines: `2026-07-14T09:05:03Z`.
pub(super) fn iso(ms: u64) -> String {
    let (year, month, day) = date(ms / 86_400_000);
    let second = ms / 1000 % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A time of day and a date, for people.
pub fn utc(ms: u64) -> String {
    let iso = iso(ms);
    iso.replace('T', " ").replace('Z', " UTC")
}

/// Year, month and day of a day since 1970-01-01, by the Gregorian calendar.
///
/// Counted in years that begin in March, so that a leap day is a year's last.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468; // since 0000-03-01
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, turn) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + turn, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_have_a_fitting_unit() {
        assert_eq!(milliseconds(1.25), "1.25\u{202f}ms");
        assert_eq!(milliseconds(-0.0045), "-4.5\u{202f}µs");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @SECONDS`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(iso(seconds * 1000), expected);
        }
        // Whatever a device claims, nothing panics.
        iso(u64::MAX);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(7), "7");
        assert_eq!(count(1234), "1\u{202f}234");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(percent(0.4126), "41.3\u{202f}%");
        assert_eq!(percent(0.0), "0.0\u{202f}%");
        assert_eq!(percent(0.0004), "<\u{202f}0.1\u{202f}%");
        assert_eq!(percent(1.0), "100\u{202f}%");
        assert_eq!(percent(-0.004), "\u{2212}0.4\u{202f}%");
        assert_eq!(percent(-0.0004), ">\u{202f}\u{2212}0.1\u{202f}%");
        assert_eq!(ago(1000, 1500), "now");
        assert_eq!(ago(5000, 1000), "now");
        assert_eq!(ago(0, 12_000), "12\u{202f}s ago");
        assert_eq!(ago(0, 7_200_000), "2\u{202f}h ago");
        assert_eq!(bytes(11_500), "11.5\u{202f}kB");
        assert_eq!(macs(50_400_000), "50.4\u{202f}MMAC");
    }
}
