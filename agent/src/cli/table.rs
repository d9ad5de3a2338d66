//! Aligned columns, coloured on a terminal.

use std::io::IsTerminal as _;

/// How a cell looks on a terminal; elsewhere it is its text alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Good,
    Bad,
    Waiting,
    Faint,
}

pub struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    pub fn new(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: text.into(), colour }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Colour::Plain)
    }
}

/// Whether standard output is a terminal that wants colour.
pub fn wants_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub fn paint(text: &str, colour: Colour, coloured: bool) -> String {
    let code = match colour {
        _ if !coloured => return text.to_owned(),
        Colour::Plain => return text.to_owned(),
        Colour::Good => 32,
        Colour::Bad => 31,
        Colour::Waiting => 33,
        Colour::Faint => 2,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Rows under a header, each column as wide as its widest cell; nothing behind a row's last cell.
pub fn render(header: &[&str], rows: &[Vec<Cell>], coloured: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let head: Vec<Cell> = header.iter().map(|name| Cell::new(*name, Colour::Faint)).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = " ".repeat(width - cell.text.chars().count() + 2);
            line.push_str(&paint(&cell.text, cell.colour, coloured));
            line.push_str(&padding);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// An age such as `12s`, `5m 3s`, `2h 7m` or `3d 4h`.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = vec![vec!["é".into(), "x".into()], vec!["alpha".into(), "".into()]];
        assert_eq!(render(&["A", "B"], &rows, false), "A      B\né      x\nalpha\n");
    }

    #[test]
    fn colour_does_not_change_the_alignment() {
        let rows = vec![vec![Cell::new("up", Colour::Good), "x".into()]];
        assert_eq!(render(&["A", "B"], &rows, true).lines().last(), Some("\u{1b}[32mup\u{1b}[0m  x"));
    }

    #[test]
    fn ages_have_two_parts_at_most() {
        assert_eq!(age(0), "0s");
        assert_eq!(age(61_000), "1m 1s");
        assert_eq!(age(7_260_000), "2h 1m");
        assert_eq!(age(90_000_000), "1d 1h");
    }
}
