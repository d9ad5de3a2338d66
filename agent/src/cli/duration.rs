//! Times as people write them.

use std::time::Duration;

/// A number and its unit: `30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: write a number and s, m, h or d, like 90m");
    let digits = text.len() - text.chars().next_back().map_or(0, char::len_utf8);
    let seconds = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..digits].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_its_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "h", "1", "1 h", "-1h", "1w", "1.5h", "99999999999d", "1µ"] {
            assert!(duration(text).unwrap_err().contains("like 90m"), "{text}");
        }
    }
}
