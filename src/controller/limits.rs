//! The limits of everything a person may choose: names, numbers and sizes, for requests and configuration alike. Pure
//! functions; a value outside is refused with a line that says what is allowed, never bent into range.

use super::api::{Failure, FailureKind};
use crate::intent::REGION_SIZE_MAX;

/// Longest name of a volume, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most volumes one request may name.
pub const VOLUMES_MAX: usize = 64;
/// Most characters of somebody else's text that an error message repeats.
const QUOTED_CHARS_MAX: usize = 80;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

pub const QUEUES: Limit = Limit::new(1, 32);
pub const DEPTH: Limit = Limit::new(1, 256);
pub const DRAIN_WINDOW: Limit = Limit::new(1, 256);
pub const TRACK_SIZE: Limit = Limit { low: 4 * KIB, high: MIB, rule: Rule::PowerOfTwo };
pub const REGION_SIZE: Limit = Limit { low: 4 * KIB, high: REGION_SIZE_MAX, rule: Rule::PowerOfTwo };
pub const IMAGE_POOL: Limit = Limit::new(0, 16 * GIB);
pub const BANDWIDTH_LIMIT: Limit = Limit { low: 64 * KIB, high: TIB, rule: Rule::OrZero };
pub const RUN_TIMER_MS: Limit = Limit::new(1, 60_000);
pub const INCREMENT_TIMER_MS: Limit = Limit::new(1_000, 86_400_000);
pub const COLLISION_WAIT_MS: Limit = Limit::new(1, 60_000);
/// Up to 365 days.
pub const TIMEOUT_MS: Limit = Limit::new(1, 31_536_000_000);

/// A region is a run of whole tracks.
pub fn check_region_size(region_size: u64, track_size: u64) -> Result<(), Failure> {
    if region_size < track_size {
        let why =
            format!("region_size: {region_size} is not allowed; it must be at least the track size, {track_size}");
        return Err(Failure::new(FailureKind::Usage, why));
    }
    Ok(())
}

/// Which numbers are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    low: u64,
    high: u64,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Range,
    PowerOfTwo,
    OrZero,
}

impl Limit {
    const fn new(low: u64, high: u64) -> Self {
        Self { low, high, rule: Rule::Range }
    }

    pub fn allows(self, value: u64) -> bool {
        let in_range = (self.low..=self.high).contains(&value);
        match self.rule {
            Rule::Range => in_range,
            Rule::PowerOfTwo => in_range && value.is_power_of_two(),
            Rule::OrZero => in_range || value == 0,
        }
    }

    /// The refusal of `value` without the name of what it was for, or nothing.
    pub fn refusal(self, value: u64) -> Option<String> {
        (!self.allows(value)).then(|| format!("{value} is not allowed; it must be {self}"))
    }

    pub fn check(self, key: &str, value: u64) -> Result<(), Failure> {
        match self.refusal(value) {
            Some(why) => Err(Failure::new(FailureKind::Usage, format!("{key}: {why}"))),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { low, high, rule } = self;
        match rule {
            Rule::Range => write!(f, "{low} to {high}"),
            Rule::PowerOfTwo => write!(f, "a power of two from {low} to {high}"),
            Rule::OrZero => write!(f, "0 or {low} to {high}"),
        }
    }
}

/// A volume's name is also a file name and a word in a log line, so its alphabet is small.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let in_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let why = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("is longer than {NAME_BYTES_MAX} characters")
    } else if name.starts_with(['.', '-']) {
        "starts with '.' or '-'".to_owned()
    } else if !name.bytes().all(in_alphabet) {
        "has characters other than letters, digits, '.', '_' and '-'".to_owned()
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureKind::Usage, format!("the volume name \"{}\" {why}; choose another", quote(name))))
}

/// Each name is valid, none is there twice, and there are not too many.
pub fn check_names(names: &[String]) -> Result<(), Failure> {
    if names.len() > VOLUMES_MAX {
        let message = format!("{} volumes are named; at most {VOLUMES_MAX} may be in one request", names.len());
        return Err(Failure::new(FailureKind::Usage, message));
    }
    for (at, name) in names.iter().enumerate() {
        check_name(name)?;
        if names.iter().take(at).any(|earlier| earlier == name) {
            return Err(Failure::new(FailureKind::Usage, format!("the volume {name} is named twice; name it once")));
        }
    }
    Ok(())
}

/// A number of bytes as people write it: `65536`, `64K`, `64KiB`, `1MiB`. K, M, G and T are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let refused = || format!("\"{}\" is not a size; write bytes or for example 64KiB, 1MiB, 2G", quote(text));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(refused)?;
    let factor = match unit {
        "" | "B" => 1,
        "K" | "KiB" => KIB,
        "M" | "MiB" => MIB,
        "G" | "GiB" => GIB,
        "T" | "TiB" => TIB,
        _ => return Err(refused()),
    };
    let number: u64 = number.parse().map_err(|_| refused())?;
    number.checked_mul(factor).ok_or_else(|| format!("\"{}\" is too large a size", quote(text)))
}

/// Somebody else's text, made fit for one line of a log or a terminal: bounded, and without control characters.
pub fn quote(text: &str) -> String {
    shorten(text, QUOTED_CHARS_MAX)
}

/// The first `chars_max` characters, with control characters and the like written out as escapes.
pub fn shorten(text: &str, chars_max: usize) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == chars_max {
            shown.push_str("...");
            break;
        }
        if is_plain(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

/// Neither moves the cursor nor reorders or hides what stands beside it.
fn is_plain(character: char) -> bool {
    let reorders_or_hides = matches!(character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !character.is_control() && !reorders_or_hides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_a_small_alphabet_and_bounded() {
        for good in ["vol0", "a", "A.b-c_9", &"x".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in
            ["", ".", "..", "-v", ".hidden", "a/b", "../../etc/passwd", "a b", "a\0", "a\n", "\u{e9}", &"x".repeat(65)]
        {
            let failure = check_name(bad).expect_err(bad);
            assert_eq!(failure.kind, FailureKind::Usage);
            assert!(!failure.message.contains(['\n', '\0']), "{failure}");
            assert!(failure.message.len() < 200, "{failure}");
        }
    }

    #[test]
    fn a_name_may_not_be_given_twice_nor_too_many() {
        let names = |count: usize| (0..count).map(|n| format!("v{n}")).collect::<Vec<_>>();
        assert_eq!(check_names(&names(64)), Ok(()));
        assert!(check_names(&names(65)).is_err());
        assert!(check_names(&["a".into(), "b".into(), "a".into()]).is_err());
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("65536", 65536), ("64K", 65536), ("64KiB", 65536), ("1MiB", MIB), ("2G", 2 * GIB)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "K",
            "-1",
            "+1",
            "1.5M",
            "64 KiB",
            "64kb",
            "64KB",
            "0x10",
            "99999999999999999999",
            "99999999T",
            "1\u{e9}",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_say_what_is_allowed() {
        assert!(BANDWIDTH_LIMIT.allows(0) && BANDWIDTH_LIMIT.allows(64 * KIB) && !BANDWIDTH_LIMIT.allows(1));
        assert!(TRACK_SIZE.allows(4096) && !TRACK_SIZE.allows(5000) && !TRACK_SIZE.allows(2048));
        let failure = QUEUES.check("queues", 33).expect_err("33 queues");
        assert_eq!(failure.message, "queues: 33 is not allowed; it must be 1 to 32");
    }

    #[test]
    fn other_peoples_text_stays_on_one_bounded_line() {
        assert_eq!(quote("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\u{a}b");
        assert_eq!(quote(&"x".repeat(1000)).len(), 83);
    }
}
