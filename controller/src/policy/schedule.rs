//! Busy hours: days and hours in a time zone.

use std::{fmt, str::FromStr, time::SystemTime};

use jiff::{Timestamp, civil::Weekday, tz::TimeZone};
use serde::{Deserialize, Serialize};

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// From one time of the day to another, written `"09:00-18:00"`. An end that is not after the
/// beginning is on the next day; `"00:00-24:00"` is the whole day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    /// Minutes after midnight, 0 to 1439.
    begin: u16,
    /// Minutes after midnight, 1 to 1440.
    end: u16,
}

const DAY: u16 = 24 * 60;

impl Hours {
    fn last_past_midnight(self) -> bool {
        self.end <= self.begin
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time of the day; write \"09:00-18:00\"");
        let minutes = |part: &str| -> Option<u16> {
            let (hour, minute) = part.trim().split_once(':')?;
            let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour <= 24 && minute < 60)
                .then(|| hour * 60 + minute)
                .filter(|at| *at <= DAY)
        };
        let (begin, end) = text.split_once('-').ok_or_else(wrong)?;
        let (begin, end) = minutes(begin).zip(minutes(end)).ok_or_else(wrong)?;
        if begin == DAY || begin == end {
            return Err(wrong());
        }
        let end = if end == 0 { DAY } else { end };
        Ok(Self { begin, end })
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (begin, end) = (self.begin, self.end);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            begin / 60,
            begin % 60,
            end / 60,
            end % 60
        )
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        hours.to_string()
    }
}

/// The time zone of this IANA name.
///
/// # Errors
/// In words, with an example.
pub(super) fn time_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        format!(
            "there is no time zone `{name}`; write an IANA name such as \"Asia/Tokyo\", or \"UTC\""
        )
    })
}

/// Whether `now` is within the hours on one of the days; no days: on any.
pub(super) fn is_busy(days: &[Day], hours: Hours, zone: &TimeZone, now: SystemTime) -> bool {
    let Ok(now) = Timestamp::try_from(now) else {
        return true; // no such time: rather use a link than not
    };
    let local = zone.to_datetime(now);
    let minute =
        u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
    let on = |weekday: Weekday| {
        let day = match weekday {
            Weekday::Monday => Day::Mon,
            Weekday::Tuesday => Day::Tue,
            Weekday::Wednesday => Day::Wed,
            Weekday::Thursday => Day::Thu,
            Weekday::Friday => Day::Fri,
            Weekday::Saturday => Day::Sat,
            Weekday::Sunday => Day::Sun,
        };
        days.is_empty() || days.contains(&day)
    };
    let today = local.weekday();
    match hours.last_past_midnight() {
        false => on(today) && (hours.begin..hours.end).contains(&minute),
        true => {
            (on(today) && minute >= hours.begin) || (on(today.previous()) && minute < hours.end)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn busy(days: &[Day], hours: &str, zone: &str, unix_s: u64) -> bool {
        let zone = time_zone(zone).unwrap();
        is_busy(
            days,
            hours.parse().unwrap(),
            &zone,
            UNIX_EPOCH + Duration::from_secs(unix_s),
        )
    }

    /// Thursday 2026-01-01 00:00 UTC.
    const NEW_YEAR: u64 = 1_767_225_600;
    const HOUR: u64 = 3_600;

    #[test]
    fn busy_hours_follow_the_sun_of_their_time_zone_and_its_summer_time() {
        // Nine in the morning in Tokyo is midnight UTC.
        assert!(busy(&[], "09:00-18:00", "Asia/Tokyo", NEW_YEAR));
        assert!(!busy(&[], "09:00-18:00", "UTC", NEW_YEAR));
        assert!(!busy(&[], "09:00-18:00", "Asia/Tokyo", NEW_YEAR + 9 * HOUR));
        // Berlin: 08:30 UTC is 09:30 in winter and 10:30 in summer.
        let july = NEW_YEAR + 181 * 24 * HOUR;
        let half_past_eight = 8 * HOUR + HOUR / 2;
        assert!(busy(
            &[],
            "09:00-10:00",
            "Europe/Berlin",
            NEW_YEAR + half_past_eight
        ));
        assert!(!busy(
            &[],
            "09:00-10:00",
            "Europe/Berlin",
            july + half_past_eight
        ));
        assert!(busy(
            &[],
            "10:00-11:00",
            "Europe/Berlin",
            july + half_past_eight
        ));
    }

    #[test]
    fn hours_past_midnight_belong_to_the_day_they_begin_on() {
        let thursday = [Day::Thu];
        let late = |unix_s| busy(&thursday, "22:00-02:00", "UTC", unix_s);
        assert!(late(NEW_YEAR + 23 * HOUR));
        assert!(late(NEW_YEAR + 25 * HOUR), "Friday, one in the morning");
        assert!(!late(NEW_YEAR + HOUR), "Wednesday's night");
        assert!(!late(NEW_YEAR + 47 * HOUR), "Friday night");
        assert!(busy(
            &thursday,
            "00:00-24:00",
            "UTC",
            NEW_YEAR + 24 * HOUR - 1
        ));
        assert!(!busy(&thursday, "00:00-24:00", "UTC", NEW_YEAR + 24 * HOUR));
    }

    #[test]
    fn what_is_no_time_of_the_day_or_no_zone_is_refused() {
        for text in [
            "",
            "9",
            "09:00",
            "09:60-10:00",
            "25:00-26:00",
            "09:00-2000:00",
            "10:00-10:00",
            "24:00-01:00",
        ] {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
        assert_eq!(
            "9:05-0:00".parse::<Hours>().unwrap().to_string(),
            "09:05-24:00"
        );
        assert!(
            time_zone("Mars/Olympus")
                .unwrap_err()
                .contains("Asia/Tokyo")
        );
    }
}
