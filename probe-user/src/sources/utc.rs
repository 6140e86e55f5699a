//! A point in time as text: UTC, to the second.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day.
const DAY: u64 = 86_400;
/// Days of 400 years, after which the Gregorian calendar repeats.
const DAYS_OF_400_YEARS: u64 = 146_097;

/// As RFC 3339 writes it: `2026-11-25T15:00:00Z`. Times before 1970 are shown as its first second.
pub fn text(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date(seconds / DAY);
    let second = seconds % DAY;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

/// Whether `text` has the form that [`text()`] gives.
pub fn is_text(text: &str) -> bool {
    let fits =
        |(found, wanted): (u8, u8)| if wanted == b'0' { found.is_ascii_digit() } else { found == wanted };
    let form = b"0000-00-00T00:00:00Z";
    text.len() == form.len() && text.bytes().zip(form.iter().copied()).all(fits)
}

/// Year, month and day of so many days after 1970-01-01, with years counted from March so that a leap day ends them.
fn date(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01 on.
    let days = days + 719_468;
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let month = if months_since_march < 10 { months_since_march + 3 } else { months_since_march - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_as_date_prints_them() {
        // `date -u -d @SECONDS +%FT%TZ`.
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_618_800, "2026-11-25T15:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, expected) in cases {
            let found = text(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(found, expected);
            assert!(is_text(&found));
        }
    }

    #[test]
    fn what_is_no_time() {
        for text in ["", "2026-11-25", "2026-11-25T15:00:00+", "2026-11-25T15:00:0xZ", "2026-11-25 15:00:00Z"]
        {
            assert!(!is_text(text), "{text}");
        }
    }
}
