//! Days and moments, as chat templates are told them.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

const DAY: u64 = 86_400;

/// A day, UTC: so many days after 1970-01-01. Written as 2026-11-26.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(u64);

/// Seconds since 1970, UTC.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

impl Date {
    /// The day that it is now.
    pub fn today() -> Self {
        Self(now() / DAY)
    }

    /// Its first second, since 1970.
    pub(super) fn start(self) -> u64 {
        self.0 * DAY
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&strftime("%Y-%m-%d", self.start()).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<u64>> = text.split('-').map(|part| part.parse().ok()).collect();
        let day = match numbers.as_deref() {
            Some(&[year @ 1970..=9999, month @ 1..=12, day @ 1..=31]) => {
                Self(days(year, month, day))
            }
            _ => return Err("must be a day from 1970 on, such as 2026-11-26".into()),
        };
        // A day that there is not, or one written in another way, is not what comes back.
        if day.to_string() == text {
            Ok(day)
        } else {
            Err(format!("is no day: did you mean {day}?"))
        }
    }
}

/// Days from 1970-01-01 on: the inverse of what [`strftime`] does.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March.
    let (year, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From 1970-01-01 on.
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A moment, in seconds since 1970 UTC, as C's strftime writes it; the fields that dates in chat
/// templates use.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, for days after 1970: years begin in March, so that the
    // leap day is a year's last. <https://howardhinnant.github.io/date_algorithms.html>
    let from_0000_03 = days + 719_468;
    let (era, day_of_era) = (from_0000_03 / 146_097, from_0000_03 % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);

    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let unpadded = rest[at + 1..].strip_prefix('-');
        let field = unpadded.unwrap_or(&rest[at + 1..]);
        let number = |value: u64, width: usize| match unpadded {
            Some(_) => value.to_string(),
            None => format!("{value:0width$}"),
        };
        let name = field.chars().next();
        text += &match name {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('d') => number(day, 2),
            Some('e') if unpadded.is_none() => format!("{day:2}"),
            Some('e') => day.to_string(),
            Some('j') => number(self::days(year, month, day) - self::days(year, 1, 1) + 1, 3),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => number(minute, 2),
            Some('S') => number(second % 60, 2),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('%') => "%".to_owned(),
            other => {
                let field = other.map_or_else(String::new, String::from);
                return Err(format!("strftime_now: %{field} in {format:?} is not supported"));
            }
        };
        rest = &field[name.map_or(0, char::len_utf8)..];
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{Date, strftime};

    #[test]
    fn dates_are_those_of_the_calendar() {
        let written = |seconds| strftime("%A %a %d %B %b %Y %y-%m %H:%M:%S%%", seconds).unwrap();
        assert_eq!(written(0), "Thursday Thu 01 January Jan 1970 70-01 00:00:00%");
        // The leap day of a century, and the seconds around a new year.
        assert_eq!(written(951_782_400), "Tuesday Tue 29 February Feb 2000 00-02 00:00:00%");
        assert_eq!(written(1_735_689_599), "Tuesday Tue 31 December Dec 2024 24-12 23:59:59%");
        assert_eq!(written(1_735_689_600), "Wednesday Wed 01 January Jan 2025 25-01 00:00:00%");
        let written = |seconds| strftime("%-d/%-m/%-y %e %j %I%p %-I %F %T %D %R é%%", seconds);
        assert_eq!(
            written(951_782_400 + 47_100).unwrap(),
            "29/2/0 29 060 01PM 1 2000-02-29 13:05:00 02/29/00 13:05 é%"
        );
        assert_eq!(
            written(1_735_689_600).unwrap(),
            "1/1/25  1 001 12AM 12 2025-01-01 00:00:00 01/01/25 00:00 é%"
        );
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("%", 0).is_err());
    }

    #[test]
    fn days_are_read_as_they_are_written() {
        for day in (0..60_000).step_by(7) {
            assert_eq!(Date(day).to_string().parse(), Ok(Date(day)));
        }
        assert_eq!("2000-02-29".parse(), Ok(Date(951_782_400 / 86_400)));
        for text in ["2025-02-29", "2025-13-01", "1969-12-31", "2025-1-1", "today", ""] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
    }
}
