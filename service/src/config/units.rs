use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration written with its unit, such as `"5s"`, `"250ms"` or `"1h30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct HumanDuration(pub Duration);

/// A rate written with its unit, such as `"1Gbps"` or `"500Kbps"`. Units are decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Rate {
    bits_per_sec: u64,
}

/// A size written with its unit, such as `"64KiB"` (binary) or `"1MB"` (decimal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Size {
    bytes: u64,
}

/// A value that is not of the form it should have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}; write {forms}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    forms: &'static str,
}

/// Name of a unit and what one of it is in the base unit.
type Unit = (&'static str, u64);

/// In nanoseconds; the first of each size is the one that is written.
const DURATIONS: Kind = Kind {
    what: "duration",
    forms: "a number and a unit, such as \"5s\"; units are ns, us, ms, s, m, h and d, and may follow one another as in \"1h30m\"",
    units: &[
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("min", 60_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("µs", 1_000),
        ("ns", 1),
    ],
    compound: true,
};

/// In bits per second.
const RATES: Kind = Kind {
    what: "rate",
    forms: "a number and a unit, such as \"1Gbps\"; units are bps, Kbps, Mbps, Gbps and Tbps (bits, decimal)",
    units: &[
        ("tbps", 1_000_000_000_000),
        ("gbps", 1_000_000_000),
        ("mbps", 1_000_000),
        ("kbps", 1_000),
        ("bps", 1),
    ],
    compound: false,
};

/// In bytes.
const SIZES: Kind = Kind {
    what: "size",
    forms: "a number and a unit, such as \"64KiB\"; units are B, KiB, MiB, GiB and TiB, or kB, MB, GB and TB for powers of ten",
    units: &[
        ("tib", 1 << 40),
        ("gib", 1 << 30),
        ("mib", 1 << 20),
        ("kib", 1 << 10),
        ("tb", 1_000_000_000_000),
        ("gb", 1_000_000_000),
        ("mb", 1_000_000),
        ("kb", 1_000),
        ("b", 1),
    ],
    compound: false,
};

impl Rate {
    /// A rate in bits per second.
    #[must_use]
    pub const fn from_bits_per_sec(bits_per_sec: u64) -> Self {
        Self { bits_per_sec }
    }

    /// The rate in bits per second.
    #[must_use]
    pub const fn bits_per_sec(self) -> u64 {
        self.bits_per_sec
    }

    /// The rate in whole bytes per second.
    #[must_use]
    pub const fn bytes_per_sec(self) -> u64 {
        self.bits_per_sec / 8
    }
}

impl Size {
    /// A size in bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        DURATIONS
            .parse(text)
            .map(|nanos| Self(Duration::from_nanos(nanos)))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        // "1GBps" would be bytes to whoever wrote it: eight times what we should take it for.
        if text.contains("Bps") {
            return Err(RATES.error(text));
        }
        RATES.parse(text).map(Self::from_bits_per_sec)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        SIZES.parse(text).map(Self::from_bytes)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        let units = [
            ("d", 86_400_000_000_000),
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
            ("ns", 1),
        ];
        write_largest(f, nanos, &units, "s")
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("Tbps", 1_000_000_000_000),
            ("Gbps", 1_000_000_000),
            ("Mbps", 1_000_000),
            ("Kbps", 1_000),
            ("bps", 1),
        ];
        write_largest(f, self.bits_per_sec, &units, "bps")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
            ("B", 1),
        ];
        write_largest(f, self.bytes, &units, "B")
    }
}

macro_rules! as_text {
    ($($type:ty => $kind:expr),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text($kind))?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(HumanDuration => DURATIONS, Rate => RATES, Size => SIZES);

struct Kind {
    what: &'static str,
    forms: &'static str,
    units: &'static [Unit],
    compound: bool,
}

impl Kind {
    fn error(&self, text: &str) -> UnitError {
        UnitError {
            text: text.escape_debug().to_string(),
            what: self.what,
            forms: self.forms,
        }
    }

    fn parse(&self, text: &str) -> Result<u64, UnitError> {
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(0);
        }
        let mut total = 0u64;
        let mut last = u64::MAX;
        loop {
            let (value, unit, after) = self.part(rest).ok_or_else(|| self.error(text))?;
            // "1h30m", but not "30m1h" or "5s5s": these are slips.
            if unit >= last {
                return Err(self.error(text));
            }
            total = total.checked_add(value).ok_or_else(|| self.error(text))?;
            (last, rest) = (unit, after.trim_start());
            if rest.is_empty() {
                return Ok(total);
            }
            if !self.compound {
                return Err(self.error(text));
            }
        }
    }

    /// One number with its unit: the value and the unit in the base unit, and what follows.
    fn part<'a>(&self, text: &'a str) -> Option<(u64, u64, &'a str)> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')?;
        let (number, rest) = text.split_at(digits);
        let rest = rest.trim_start();
        let end = rest
            .find(|c: char| !c.is_alphabetic())
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let name = name.to_lowercase().replace('μ', "µ");
        let (_, unit) = self.units.iter().find(|(known, _)| *known == name)?;
        let number = number.replace('_', "");
        let (whole, fraction) = number.split_once('.').unwrap_or((number.as_str(), ""));
        let whole: u64 = whole.parse().ok()?;
        let mut value = u128::from(whole) * u128::from(*unit);
        if number.contains('.') {
            // At most 12 places: enough for a terabit, and no overflow.
            if fraction.is_empty() || fraction.len() > 12 {
                return None;
            }
            let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
            value += fraction.parse::<u128>().ok()? * u128::from(*unit) / scale;
        }
        Some((u64::try_from(value).ok()?, *unit, after))
    }
}

/// Takes a string, and tells what to write when it gets a bare number.
struct Text(Kind);

impl de::Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} as a string: {}", self.0.what, self.0.forms)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
        Err(E::custom(self.0.error(&value.to_string())))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
        Err(E::custom(self.0.error(&value.to_string())))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<String, E> {
        Err(E::custom(self.0.error(&value.to_string())))
    }
}

/// In the largest unit that needs no fraction.
fn write_largest(
    f: &mut fmt::Formatter<'_>,
    value: u64,
    units: &[Unit],
    zero: &str,
) -> fmt::Result {
    let fitting = units.iter().find(|(_, unit)| value.is_multiple_of(*unit));
    match fitting {
        Some((name, unit)) if value > 0 => write!(f, "{}{name}", value / unit),
        _ => write!(f, "0{zero}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> f64 {
        text.parse::<HumanDuration>().unwrap().0.as_secs_f64()
    }

    #[test]
    fn durations_rates_and_sizes_are_read_as_people_write_them() {
        assert_eq!(seconds("5s"), 5.0);
        assert_eq!(seconds("250ms"), 0.25);
        assert_eq!(seconds("1.5 s"), 1.5);
        assert_eq!(seconds("1h30m"), 5_400.0);
        assert_eq!(seconds("2d"), 172_800.0);
        assert_eq!(seconds("0"), 0.0);
        assert_eq!(seconds("10µs"), 0.00001);
        let rate = |text: &str| text.parse::<Rate>().unwrap().bits_per_sec();
        assert_eq!(rate("1Gbps"), 1_000_000_000);
        assert_eq!(rate("2.5 mbps"), 2_500_000);
        assert_eq!("8bps".parse::<Rate>().unwrap().bytes_per_sec(), 1);
        let size = |text: &str| text.parse::<Size>().unwrap().bytes();
        assert_eq!(size("64KiB"), 65_536);
        assert_eq!(size("1MB"), 1_000_000);
        assert_eq!(size("1_500B"), 1_500);
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        for nanos in [
            0,
            1,
            999,
            1_000,
            90_000_000_000,
            86_400_000_000_000,
            1_234_567_891,
        ] {
            let value = HumanDuration(Duration::from_nanos(nanos));
            assert_eq!(value.to_string().parse(), Ok(value));
        }
        for number in [0, 1, 1_000, 1_024, 1_536, 1 << 40, u64::MAX] {
            let rate = Rate::from_bits_per_sec(number);
            assert_eq!(rate.to_string().parse(), Ok(rate));
            let size = Size::from_bytes(number);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!(HumanDuration(Duration::from_secs(90)).to_string(), "90s");
        assert_eq!(Size::from_bytes(65_536).to_string(), "64KiB");
    }

    #[test]
    fn a_value_that_is_not_understood_is_answered_with_what_is_accepted() {
        for bad in [
            "",
            "5",
            "s",
            "5 parsecs",
            "-5s",
            "5s 5s",
            "30m1h",
            "1.s",
            "99999999999d",
        ] {
            let error = bad.parse::<HumanDuration>().unwrap_err().to_string();
            assert!(
                error.contains("units are ns, us, ms, s, m, h and d"),
                "{error}"
            );
        }
        for bad in ["1GBps", "10", "1Gbps1Mbps", "fast"] {
            assert!(
                bad.parse::<Rate>()
                    .unwrap_err()
                    .to_string()
                    .contains("Gbps")
            );
        }
        for bad in ["64", "64 K", "1KiB1B", "1e3B"] {
            assert!(bad.parse::<Size>().unwrap_err().to_string().contains("KiB"));
        }
    }
}
