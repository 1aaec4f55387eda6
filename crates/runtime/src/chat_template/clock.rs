//! The date and time that templates write.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A date and time of the Gregorian calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DateTime {
    /// Seconds since 1970-01-01 00:00:00.
    seconds: i64,
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

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

impl DateTime {
    /// The system's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From seconds since 1970-01-01 00:00:00 UTC.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        // Year 9999 and 1000 years before the epoch bound what the calendar below has to hold.
        DateTime {
            seconds: seconds.clamp(-31_556_952_000, 253_402_300_799),
        }
    }

    /// The text of `format`, as C's `strftime` writes it in the "C" locale. What it does not know stays as it is.
    /// As `strftime` writes it; directives that it does not know stay as they are.
    pub fn format(self, format: &str) -> String {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let mut directive = rest.next();
            let is_unpadded = directive == Some('-');
            if is_unpadded {
                directive = rest.next();
            }
            match directive {
                Some(directive) => self.write(directive, is_unpadded, &mut out),
                None => out.push('%'),
            }
        }
        out
    }

    fn write(self, directive: char, is_unpadded: bool, out: &mut String) {
        let day = self.seconds.div_euclid(86_400);
        let second = self.seconds.rem_euclid(86_400);
        let (year, month, day_of_month) = date(day);
        let weekday = (day + 4).rem_euclid(7);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let hour_of_twelve = (hour + 11) % 12 + 1;
        let day_of_year = day - days_before(year, 1, 1) + 1;
        let month_name = MONTHS[month as usize - 1];
        let mut number = |number: i64, width: usize, pad: char| {
            let width = if is_unpadded { 0 } else { width };
            // Writing to a string cannot fail.
            let _ = match pad {
                '0' => write!(out, "{number:0width$}"),
                _ => write!(out, "{number:width$}"),
            };
        };
        match directive {
            'Y' => number(year, 4, '0'),
            'y' => number(year.rem_euclid(100), 2, '0'),
            'm' => number(month, 2, '0'),
            'd' => number(day_of_month, 2, '0'),
            'e' => number(day_of_month, 2, ' '),
            'j' => number(day_of_year, 3, '0'),
            'H' => number(hour, 2, '0'),
            'I' => number(hour_of_twelve, 2, '0'),
            'M' => number(minute, 2, '0'),
            'S' => number(second % 60, 2, '0'),
            'f' => number(0, 6, '0'),
            's' => number(self.seconds, 0, '0'),
            'u' => number((weekday + 6) % 7 + 1, 1, '0'),
            'w' => number(weekday, 1, '0'),
            'B' => out.push_str(month_name),
            'b' | 'h' => out.push_str(&month_name[..3]),
            'A' => out.push_str(DAYS[weekday as usize]),
            'a' => out.push_str(&DAYS[weekday as usize][..3]),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&self.format("%Y-%m-%d")),
            'T' | 'X' => out.push_str(&self.format("%H:%M:%S")),
            'R' => out.push_str(&self.format("%H:%M")),
            'D' | 'x' => out.push_str(&self.format("%m/%d/%y")),
            'c' => out.push_str(&self.format("%a %b %e %H:%M:%S %Y")),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            // A naive time, as Python's `datetime.now()` gives, has no zone.
            'z' | 'Z' => {}
            '%' => out.push('%'),
            other => {
                out.push('%');
                out.push(other);
            }
        }
    }
}

impl From<SystemTime> for DateTime {
    fn from(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        };
        DateTime::from_unix_seconds(seconds)
    }
}

/// Year, month and day of the month of a day since 1970-01-01.
fn date(day: i64) -> (i64, i64, i64) {
    // 400 years have 146,097 days; one year too early at most two.
    let mut year = 1969 + (day * 400).div_euclid(146_097);
    while days_before(year + 1, 1, 1) <= day {
        year += 1;
    }
    let month = (1..=12)
        .rev()
        .find(|&month| days_before(year, month, 1) <= day);
    let month = month.unwrap_or(1);
    (year, month, day - days_before(year, month, 1) + 1)
}

/// Days from 1970-01-01 to the date: whole years with their leap days, then months of 30.6 days from March on.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that the leap day is the last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_dates() {
        let time = DateTime::from_unix_seconds(1_721_991_909);
        for (format, expected) in [
            ("%d %b %Y", "26 Jul 2024"),
            ("%Y-%m-%d %H:%M:%S", "2024-07-26 11:05:09"),
            ("%A, %B %-d, %Y", "Friday, July 26, 2024"),
            ("%a %e %y %I:%M %p %j %u %w", "Fri 26 24 11:05 AM 208 5 5"),
            ("%F %T %% %Q %", "2024-07-26 11:05:09 % %Q %"),
        ] {
            assert_eq!(time.format(format), expected);
        }
    }

    #[test]
    fn the_calendar_is_gapless() {
        let mut expected = (1899, 12, 31);
        for day in days_before(1900, 1, 1)..days_before(2101, 1, 1) {
            let (year, month, day_of_month) = date(day);
            let follows = (year, month, day_of_month - 1) == expected
                || (day_of_month == 1 && (year, month - 1) == (expected.0, expected.1))
                || ((month, day_of_month) == (1, 1) && year - 1 == expected.0);
            assert!(follows, "{year}-{month}-{day_of_month} after {expected:?}");
            expected = (year, month, day_of_month);
        }
        assert_eq!(expected, (2100, 12, 31));
        let leap = |year| days_before(year, 3, 1) - days_before(year, 2, 28) == 2;
        assert!(leap(2000) && leap(2024) && !leap(1900) && !leap(2100) && !leap(2023));
    }

    #[test]
    fn extremes_have_a_date() {
        for seconds in [i64::MIN, -1, 0, i64::MAX] {
            assert!(!DateTime::from_unix_seconds(seconds).format("%c").is_empty());
        }
        assert_eq!(
            DateTime::from_unix_seconds(-1).format("%F %T"),
            "1969-12-31 23:59:59"
        );
    }
}
