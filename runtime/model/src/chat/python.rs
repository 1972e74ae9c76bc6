//! What templates expect of Python: `json.dumps` and `strftime`, to the character. Knows no templates.

use std::fmt::Write;

use serde_json::Value;

/// How JSON is laid out; the keywords of `json.dumps`.
pub(super) struct Layout {
    /// What stands for one level of indentation; `None` writes one line.
    pub(super) indent: Option<String>,
    /// Between items, and between a key and its value.
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
    pub(super) ensure_ascii: bool,
}

/// JSON as `json.dumps` writes it.
pub(super) fn dumps(value: &Value, layout: &Layout) -> String {
    let mut out = String::new();
    write_value(value, layout, 0, &mut out);
    out
}

fn write_value(value: &Value, layout: &Layout, depth: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(it) => out.push_str(if *it { "true" } else { "false" }),
        Value::Number(it) => out.push_str(&number(it)),
        Value::String(it) => write_string(it, layout.ensure_ascii, out),
        Value::Array(items) => {
            let write = |item: &&Value, out: &mut String| write_value(item, layout, depth + 1, out);
            write_items(['[', ']'], items.iter(), write, layout, depth, out);
        }
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            if layout.sort_keys {
                fields.sort_by_key(|it| it.0);
            }
            let write = |field: &(&String, &Value), out: &mut String| {
                write_string(field.0, layout.ensure_ascii, out);
                out.push_str(&layout.separators.1);
                write_value(field.1, layout, depth + 1, out);
            };
            write_items(['{', '}'], fields.into_iter(), write, layout, depth, out);
        }
    }
}

fn write_items<T>(
    brackets: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    write: impl Fn(&T, &mut String),
    layout: &Layout,
    depth: usize,
    out: &mut String,
) {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(brackets[0]);
    let is_empty = items.len() == 0;
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(&layout.separators.0);
        }
        line(depth + 1, out);
        write(&item, out);
    }
    if !is_empty {
        line(depth, out);
    }
    out.push(brackets[1]);
}

fn write_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(character),
            '\u{7f}'.. if !ensure_ascii => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

/// Floats as Python's `repr` has them: shortest digits, an exponent below 1e-4 and from 1e16.
fn number(number: &serde_json::Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float == 0.0 || (-4..16).contains(&exponent) {
        return format!("{float:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// A time in UTC as `strftime` writes it in the C locale; `None` for a directive that is not known.
pub(super) fn strftime(format: &str, seconds: i64) -> Option<String> {
    let days = seconds.div_euclid(86_400);
    let (hour, minute, second) =
        (seconds.rem_euclid(86_400) / 3600, seconds.rem_euclid(3600) / 60, seconds.rem_euclid(60));
    let (year, month, day) = date(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let day_of_year = days - days_before(year) + 1;
    let hour_of_half = (hour + 11) % 12 + 1;
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = rest.next()?;
        // glibc: `-` leaves out what pads a number.
        let is_padded = directive != '-';
        if !is_padded {
            directive = rest.next()?;
        }
        let two = |number: i64| if is_padded { format!("{number:02}") } else { number.to_string() };
        let name = |name: &str, n_letters: usize| name[..n_letters.min(name.len())].to_string();
        let month_name = MONTHS[(month - 1) as usize];
        text += &match directive {
            'Y' => year.to_string(),
            'y' => two(year.rem_euclid(100)),
            'm' => two(month),
            'd' => two(day),
            'e' if is_padded => format!("{day:2}"),
            'e' => day.to_string(),
            'j' if is_padded => format!("{day_of_year:03}"),
            'j' => day_of_year.to_string(),
            'B' => month_name.to_string(),
            'b' | 'h' => name(month_name, 3),
            'A' => DAYS[weekday].to_string(),
            'a' => name(DAYS[weekday], 3),
            'u' => ((weekday + 6) % 7 + 1).to_string(),
            'w' => weekday.to_string(),
            'H' => two(hour),
            'I' => two(hour_of_half),
            'M' => two(minute),
            'S' => two(second),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            's' => seconds.to_string(),
            'f' => "000000".to_string(),
            'z' => "+0000".to_string(),
            'Z' => "UTC".to_string(),
            'n' => "\n".to_string(),
            't' => "\t".to_string(),
            '%' => "%".to_string(),
            _ => return None,
        };
    }
    Some(text)
}

/// Days from 1970 to the first of January of a year of the Gregorian calendar.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

/// Year, month and day of the month, both from 1, so many days after the first of January 1970.
fn date(days: i64) -> (i64, i64, i64) {
    // No year is shorter, so this is at most a little too late.
    let mut year = 1970 + days.div_euclid(365) + 1;
    while days_before(year) > days {
        year -= 1;
    }
    let is_leap = days_before(year + 1) - days_before(year) == 366;
    let lengths = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before(year);
    for (length, month) in lengths.into_iter().zip(1..) {
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// Against Python's `datetime.fromtimestamp(it, utc).strftime("%Y-%m-%d %j %a %H:%M:%S %I %p")`.
    #[test]
    fn times_are_written_as_python_does() {
        let format = "%Y-%m-%d %j %a %H:%M:%S %I %p";
        for (seconds, expected) in [
            (0, "1970-01-01 001 Thu 00:00:00 12 AM"),
            (951_827_696, "2000-02-29 060 Tue 12:34:56 12 PM"),
            (1_735_689_599, "2024-12-31 366 Tue 23:59:59 11 PM"),
            (4_107_542_400, "2100-03-01 060 Mon 00:00:00 12 AM"),
            (-1, "1969-12-31 365 Wed 23:59:59 11 PM"),
        ] {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
        assert_eq!(strftime("%d %b %Y, %B %-d%%", 1_700_000_000).unwrap(), "14 Nov 2023, November 14%");
        assert_eq!(strftime("%Q", 0), None);
        assert_eq!(strftime("%", 0), None);
    }

    /// Against Python's `json.dumps`.
    #[test]
    fn json_is_written_as_python_does() {
        let value =
            serde_json::json!({"b": [1, 1.0, 1e16, 1.5e-7, 0.0001, -0.0], "a": {}, "é": "\u{1}\u{7f}\u{1F642}\n"});
        let layout = |indent: Option<&str>, sort_keys, ensure_ascii| Layout {
            indent: indent.map(str::to_string),
            separators: (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
            sort_keys,
            ensure_ascii,
        };
        assert_eq!(
            dumps(&value, &layout(None, false, false)),
            "{\"b\": [1, 1.0, 1e+16, 1.5e-07, 0.0001, -0.0], \"a\": {}, \"é\": \"\\u0001\u{7f}\u{1F642}\\n\"}"
        );
        assert_eq!(
            dumps(&value, &layout(Some("  "), true, true)),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    1.0,\n    1e+16,\n    1.5e-07,\n    0.0001,\n    -0.0\n  ],\n  \
             \"\\u00e9\": \"\\u0001\\u007f\\ud83d\\ude42\\n\"\n}"
        );
    }
}
