//! Tables of aligned columns.
//!
//! Owns their layout: on a terminal the widest texts are cut until a row fits, in a pipe or file nothing is. May import
//! the console and text. Must never know what a column means.

use super::console::{Console, Tone};
use super::error::CtlError;
use super::text::{fit, one_line};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Left(&'static str),
    /// A figure.
    Right(&'static str),
    /// A text that may be cut.
    Flexible(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Left(title) | Column::Right(title) | Column::Flexible(title) => title,
        }
    }
}

pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub fn toned(text: &str, tone: Tone) -> Cell {
        Cell { text: one_line(text), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::toned(text.as_ref(), Tone::Plain)
    }
}

pub struct Table<const N: usize> {
    indent: usize,
    columns: [Column; N],
    rows: Vec<[Cell; N]>,
}

const GAP: usize = 2;
/// No text is cut shorter.
const LEAST_WIDTH: usize = 8;

impl<const N: usize> Table<N> {
    pub fn new(indent: usize, columns: [Column; N]) -> Table<N> {
        Table { indent, columns, rows: Vec::new() }
    }

    pub fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    pub fn print(&self, console: &mut Console) -> Result<(), CtlError> {
        let widths = self.widths(console.out_is_terminal().then_some(console.width));
        let titles = self.columns.map(|column| Cell::toned(column.title(), Tone::Title));
        for row in std::iter::once(&titles).chain(&self.rows) {
            let line = self.line(row, &widths, console);
            console.print(&line)?;
        }
        Ok(())
    }

    fn widths(&self, most: Option<usize>) -> [usize; N] {
        let mut widths = std::array::from_fn(|index| {
            let cells = self.rows.iter().map(|row| row[index].text.chars().count());
            cells.max().unwrap_or(0).max(self.columns[index].title().len())
        });
        let Some(most) = most else { return widths };
        while self.indent + widths.iter().sum::<usize>() + GAP * (N - 1) > most {
            let flexible = (0..N).filter(|index| matches!(self.columns[*index], Column::Flexible(_)));
            match flexible.filter(|index| widths[*index] > LEAST_WIDTH).max_by_key(|index| widths[*index]) {
                Some(widest) => widths[widest] -= 1,
                None => break,
            }
        }
        widths
    }

    fn line(&self, row: &[Cell; N], widths: &[usize; N], console: &Console) -> String {
        let mut line = " ".repeat(self.indent);
        let mut owed = 0;
        for ((cell, column), width) in row.iter().zip(self.columns).zip(widths) {
            let text = fit(&cell.text, *width);
            let pad = width.saturating_sub(text.chars().count());
            let (before, after) = if matches!(column, Column::Right(_)) { (pad, 0) } else { (0, pad) };
            if !text.is_empty() {
                line.push_str(&" ".repeat(owed + before));
                line.push_str(&console.toned(&text, cell.tone));
                owed = 0;
            } else {
                owed += before;
            }
            owed += after + GAP;
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Recorded;
    use super::*;

    fn shown(terminal: bool, agent: &str, note: &str) -> String {
        let (mut console, out) = Recorded::console(terminal);
        let mut table = Table::new(
            2,
            [Column::Left("ID"), Column::Right("RSS"), Column::Flexible("AGENT"), Column::Flexible("NOTE")],
        );
        table.row(["t-1".into(), "7.5".into(), agent.into(), note.into()]);
        table.row(["t-200".into(), "1024.0".into(), "wc".into(), "".into()]);
        table.print(&mut console).expect("print");
        out.text()
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        assert_eq!(
            shown(false, "architect", "half"),
            "  ID        RSS  AGENT      NOTE\n  t-1       7.5  architect  half\n  t-200  1024.0  wc\n"
        );
    }

    #[test]
    fn only_a_terminal_has_its_texts_cut_to_fit() {
        let long = "x".repeat(100);
        assert!(shown(false, "a", &long).contains(&long));
        for line in shown(true, &long, &long).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_cell_cannot_break_its_row() {
        assert!(shown(true, "a\nb", "\x1b[2J").contains("a\\nb"));
    }
}
