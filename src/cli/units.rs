//! Numbers, times and other people's text as a person or `grep` wants them: IEC units, one word per value, no control
//! characters. Pure functions; JSON output never passes through here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::controller::limits;

/// Longest value of one `key:value`, in characters; a path may be this long.
const VALUE_CHARS_MAX: usize = 4096;

/// `64KiB`, `1.3GiB`, `100B`: one digit behind the point unless it is exact.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let found =
        UNITS.iter().enumerate().rev().map(|(at, unit)| (10 * (at + 1), unit)).find(|(shift, _)| bytes >> shift > 0);
    let Some((shift, unit)) = found else { return format!("{bytes}B") };
    let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
    // In tenths, cut off: a thing is never shown as larger than it is.
    match (u128::from(rest) * 10) >> shift {
        0 => format!("{whole}{unit}"),
        tenths => format!("{whole}.{tenths}{unit}"),
    }
}

/// `0.4s`, `38s`, `2m03s`, `1h04m`, `3d02h`.
pub(super) fn seconds(seconds: f64) -> String {
    let Ok(duration) = Duration::try_from_secs_f64(seconds) else { return "unknown".to_owned() };
    let whole = duration.as_secs();
    match whole {
        0 if duration.as_millis() == 0 => "0s".to_owned(),
        0..10 if duration.subsec_millis() >= 100 => format!("{whole}.{}s", duration.subsec_millis() / 100),
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole / 60 % 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole / 3_600 % 24),
    }
}

/// `850us`, `1.2ms`, `3s`.
pub(super) fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// `yes` or `no`.
pub(super) fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// A value that stays one word for whoever splits at spaces: quoted when it is not one.
pub(super) fn word(text: &str) -> String {
    let text = limits::shorten(text, VALUE_CHARS_MAX);
    if text.is_empty() || text.contains([' ', '"']) { format!("\"{}\"", text.replace('"', "\\\"")) } else { text }
}

/// A message without line ends and other control characters.
pub(super) fn one_line(text: &str, chars_max: usize) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    limits::shorten(&words, chars_max)
}

/// RFC 3339 in UTC, to the microsecond.
pub(super) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second, us) = (second / 3_600, second / 60 % 60, second % 60, since.subsec_micros());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{us:06}Z")
}

/// The Gregorian date of a day after 1970-01-01, by years that begin in March so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next_year) = if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_iec_units() {
        let table = [
            (0, "0B"),
            (1023, "1023B"),
            (65536, "64KiB"),
            (1536, "1.5KiB"),
            (100 << 30, "100GiB"),
            ((1 << 30) - 1, "1023.9MiB"),
            (u64::MAX, "15.9EiB"),
        ];
        for (number, text) in table {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_are_shown_as_people_say_them() {
        let table = [
            (0.0, "0s"),
            (0.05, "50ms"),
            (0.4, "0.4s"),
            (6.0, "6s"),
            (9.25, "9.2s"),
            (38.9, "38s"),
            (123.0, "2m03s"),
            (3_840.0, "1h04m"),
            (266_400.0, "3d02h"),
            (-1.0, "unknown"),
            (f64::NAN, "unknown"),
            (f64::INFINITY, "unknown"),
        ];
        for (number, text) in table {
            assert_eq!(seconds(number), text, "{number}");
        }
        assert_eq!((microseconds(850), microseconds(1_250)), ("850us".into(), "1.2ms".into()));
    }

    #[test]
    fn a_timestamp_is_rfc_3339() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_700_000_000), "2023-11-14T22:13:20.000000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn values_stay_one_word() {
        assert_eq!(word("/dev/b0"), "/dev/b0");
        assert_eq!(word("/a b"), "\"/a b\"");
        assert_eq!(word("x\ny"), "x\\u{a}y");
        assert_eq!(word(""), "\"\"");
    }
}
