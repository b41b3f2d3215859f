//! Sizes, durations, numbers and dates, as people write and read them.

use std::time::Duration;

const STEPS: [(&str, u32); 6] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60)];

/// Reads `4096`, `4K`, `4KiB`, `1.5GiB` (powers of 1024) or `1GB` (powers of 1000).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim().to_ascii_uppercase());
    let bad = || format!("`{text}` is not a size; write it like 65536, 64KiB, 16MiB or 1GiB");
    let scale = match unit.as_str() {
        "" | "B" => 1u64,
        _ => {
            let (step, (_, shift)) =
                (1..).zip(STEPS).find(|(_, (name, _))| unit.starts_with(name)).ok_or_else(bad)?;
            match &unit[1..] {
                "" | "IB" => 1u64 << shift,
                "B" => 1000u64.pow(step),
                _ => return Err(bad()),
            }
        }
    };
    let bytes = match number.split_once('.') {
        None => number.parse::<u64>().map_err(|_| bad())?.checked_mul(scale),
        Some(_) => {
            let value = number.parse::<f64>().map_err(|_| bad())? * scale as f64;
            (value < u64::MAX as f64).then_some(value as u64)
        }
    };
    bytes.ok_or_else(|| format!("`{text}` is more bytes than 64 bits can count"))
}

/// A chunk size: a size that layouts allow.
pub fn parse_chunk_size(text: &str) -> Result<u32, String> {
    let bytes = u32::try_from(parse_size(text)?).unwrap_or(u32::MAX);
    catena_proto::layout::check_chunk_size(bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Reads `500ms`, `10s`, `10` (seconds), `2m`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let bad = || format!("`{text}` is not a duration; write it like 500ms, 10s, 2m or 1h");
    let value: f64 = text[..digits].parse().map_err(|_| bad())?;
    let seconds = match text[digits..].trim() {
        "ms" => value / 1e3,
        "" | "s" => value,
        "m" | "min" => value * 60.0,
        "h" => value * 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// `512 B`, `1.0 KiB`, `23.4 GiB`: three significant digits, never a rounding to zero.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut step = 0;
    while value >= 999.5 && step + 1 < STEPS.len() {
        value /= 1024.0;
        step += 1;
    }
    let unit = STEPS[step].0;
    // Whole numbers read better bare: a chunk is 1 MiB, not 1.00 MiB.
    if value.fract() == 0.0 && value < 1000.0 {
        format!("{value:.0} {unit}iB")
    } else if value < 9.995 {
        format!("{value:.2} {unit}iB")
    } else if value < 99.95 {
        format!("{value:.1} {unit}iB")
    } else {
        format!("{value:.0} {unit}iB")
    }
}

/// `1234567` as `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `850 µs`, `12.3 ms`, `4.56 s`, `3 min 20 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1e-3 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 100.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// MiB/s of `bytes` in `seconds`, 0 for no time at all.
pub fn mib_s(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / 1048576.0 / seconds } else { 0.0 }
}

/// Three decimals, so that JSON stays readable.
pub fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// `2025-03-14 15:09:26` (UTC) of nanoseconds since the Unix epoch. The calendar is Howard Hinnant's `civil_from_days`.
pub fn date(nanos: i64) -> String {
    let seconds = nanos.div_euclid(1_000_000_000);
    let (days, rest) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Reads what [`date`] writes (also with `T` and `Z`), a plain day, or `@SECONDS`; all UTC. Nanoseconds since the epoch.
pub fn parse_date(text: &str) -> Result<i64, String> {
    let bad = || {
        format!("`{text}` is not a time; write it like 2025-03-14, 2025-03-14T15:09:26Z (UTC) or @1741964966")
    };
    let seconds = if let Some(seconds) = text.strip_prefix('@') {
        seconds.parse::<i64>().map_err(|_| bad())?
    } else {
        let text = text.trim_end_matches('Z');
        let (day, time) = text.split_once(['T', ' ']).unwrap_or((text, "0:0:0"));
        let numbers = |part: &str, by: char| -> Result<Vec<i64>, String> {
            part.split(by).map(|n| n.parse().map_err(|_| bad())).collect()
        };
        let (&[year, month, date], &[hour, minute, second]) =
            (&numbers(day, '-')?[..], &numbers(time, ':')?[..])
        else {
            return Err(bad());
        };
        let fits = (1..=12).contains(&month) && (1..=31).contains(&date) && (1970..2262).contains(&year);
        if !fits || !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..61).contains(&second) {
            return Err(bad());
        }
        let y = if month <= 2 { year - 1 } else { year };
        let era = y.div_euclid(400);
        let yoe = y.rem_euclid(400);
        let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + date - 1;
        let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
        (era * 146_097 + doe - 719_468) * 86400 + hour * 3600 + minute * 60 + second
    };
    seconds.checked_mul(1_000_000_000).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("1.5 MiB", 3 << 19),
            ("1GB", 1_000_000_000),
            ("64mib", 64 << 20),
            ("16E", u64::MAX),
        ] {
            let expected = (bytes != u64::MAX).then_some(bytes);
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
        for text in ["", "x", "4Q", "-1", "4KB2", "1.2.3K", "MiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1 << 20, "1 MiB"),
            (1_500_000, "1.43 MiB"),
            (15_000_000, "14.3 MiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16 EiB"),
            ((1 << 30) - 1, "1.00 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn chunk_sizes_outside_the_layouts_range_are_named() {
        assert_eq!(parse_chunk_size("1MiB"), Ok(1 << 20));
        for text in ["32K", "128MiB", "100000", "8GiB"] {
            assert!(parse_chunk_size(text).unwrap_err().contains("power of two"), "{text}");
        }
    }

    #[test]
    fn dates_survive_their_text() {
        for seconds in [0i64, 951_782_400, 1_709_164_799, 1_741_964_966, 4_102_444_800] {
            let nanos = seconds * 1_000_000_000;
            assert_eq!(parse_date(&date(nanos)), Ok(nanos));
        }
        assert_eq!(date(951_782_400_000_000_000), "2000-02-29 00:00:00");
        assert_eq!(parse_date("@5"), Ok(5_000_000_000));
        assert!(parse_date("yesterday").is_err() && parse_date("2025-13-01").is_err());
    }

    #[test]
    fn counts_and_durations_read_well() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("3 weeks").is_err());
        assert_eq!(duration(Duration::from_micros(850)), "850 µs");
    }
}
