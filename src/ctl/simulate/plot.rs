//! Memory over time as blocks on a terminal, with a line for each threshold.
//!
//! Owns its drawing. May import the console and text. Must never know how the figures came about.

use super::super::console::{Console, Tone};
use super::super::error::CtlError;
use super::super::text::{age, fit, one_line};
use super::Simulated;
use crate::core::governor::Level;
use crate::core::settings::MemorySettings;
use crate::simulation::figures::{Figures, Point};

const ROWS: usize = 16;
/// Left of the axis: `100 %`.
const LEFT: usize = 6;
/// Right of the plot: ` emergency`.
const RIGHT: usize = 10;

/// The characters of a plot, of one terminal or the other.
struct Brush {
    /// A cell filled by so many eighths, from 1 to 8.
    eighths: [char; 8],
    line: char,
    axis: char,
    corner: char,
    floor: char,
    tick: char,
}

const BLOCKS: Brush = Brush {
    eighths: ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
    line: '┄',
    axis: '│',
    corner: '└',
    floor: '─',
    tick: '┬',
};

const ASCII: Brush = Brush {
    eighths: ['.', '.', '.', ':', ':', '#', '#', '#'],
    line: '-',
    axis: '|',
    corner: '+',
    floor: '-',
    tick: '+',
};

pub fn show(simulated: &Simulated<'_>, console: &mut Console) -> Result<(), CtlError> {
    let Simulated { config, load, figures, .. } = simulated;
    if figures.points.is_empty() {
        return Ok(());
    }
    let settings = crate::daemon::settings::settings(config).memory;
    let brush = if console.speaks_utf8() { &BLOCKS } else { &ASCII };
    let width = console.width.saturating_sub(LEFT + 1 + RIGHT).clamp(16, 240);
    let columns = columns(&figures.points, width);
    let top = figures.peak_pressure.max(1.0);
    let of = match load.host_bytes {
        Some(host) => format!("of {} MiB, or of the host's {} MiB", config.memory.limit_mb, host >> 20),
        None => format!("of {} MiB", config.memory.limit_mb),
    };
    let title = console.toned("MEMORY", Tone::Title);
    console.print(&format!("{title} {of}, at most within {} a column\n", age(per_column(figures, width))))?;
    for row in (0..ROWS).rev() {
        let line = self::row(row, top, &columns, &settings, brush, console);
        console.print(&format!("{}\n", line.trim_end()))?;
    }
    let marks = marks(simulated, width);
    let mut floor: Vec<char> = vec![brush.floor; width];
    marks.iter().skip(1).for_each(|(at, _)| floor[*at] = brush.tick);
    console.print(&format!("{:>LEFT$}{}{}\n", "0 %", brush.corner, floor.iter().collect::<String>()))?;
    console.print(&format!("{:indent$}{}\n", "", legend(&marks, figures, width), indent = LEFT + 1))
}

/// The highest pressure of each column's share of time.
fn columns(points: &[Point], width: usize) -> Vec<f64> {
    let of_column = |column: usize| {
        let from = column * points.len() / width;
        let to = ((column + 1) * points.len() / width).max(from + 1);
        points[from..to.min(points.len())].iter().map(|point| point.pressure).fold(0.0, f64::max)
    };
    (0..width).map(of_column).collect()
}

fn per_column(figures: &Figures, width: usize) -> std::time::Duration {
    (figures.step * figures.points.len() as u32 / width as u32).max(figures.step)
}

fn row(row: usize, top: f64, columns: &[f64], settings: &MemorySettings, brush: &Brush, console: &Console) -> String {
    let height = top / ROWS as f64;
    let (from, to) = (row as f64 * height, (row + 1) as f64 * height);
    let is_here = |ratio: f64| ratio >= from && ratio < to;
    let level = Level::ALL.into_iter().rev().find(|level| level.begins_at(settings).is_some_and(is_here));
    let label = match level.and_then(|level| level.begins_at(settings)) {
        Some(ratio) => format!("{:.0} %", ratio * 100.0),
        None if row + 1 == ROWS => format!("{:.0} %", top * 100.0),
        None => String::new(),
    };
    let tone = match Level::ALL.into_iter().rev().find(|level| level.begins_at(settings).is_some_and(|at| at < to)) {
        Some(Level::Emergency | Level::Reject) => Tone::Bad,
        Some(Level::Critical | Level::Warning) => Tone::Careful,
        Some(Level::Normal) | None => Tone::Good,
    };
    let cell = |pressure: &f64| match ((pressure - from) / height * 8.0).round() {
        eighths if eighths >= 1.0 => brush.eighths[(eighths as usize).min(8) - 1],
        _ if level.is_some() => brush.line,
        _ => ' ',
    };
    let cells: String = columns.iter().map(cell).collect();
    // Why pieces: a colour change a cell would be most of what is sent.
    let mut line = format!("{label:>LEFT$}{}", brush.axis);
    let mut rest = cells.as_str();
    while let Some(first) = rest.chars().next() {
        let is_filled = |cell: char| cell != brush.line && cell != ' ';
        let end = rest.find(|cell| is_filled(cell) != is_filled(first)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        line += &console.toned(piece, if is_filled(first) { tone } else { Tone::Plain });
        rest = after;
    }
    match level {
        Some(level) => line + " " + level.name(),
        None => line,
    }
}

/// Where each phase begins, as a column, with its name.
fn marks(simulated: &Simulated<'_>, width: usize) -> Vec<(usize, String)> {
    let Simulated { load, figures, .. } = simulated;
    let lasted = figures.lasted.as_secs_f64().max(1.0);
    let mut begins = 0.0;
    let mut marks = Vec::new();
    for phase in &load.phases {
        marks.push((((begins / lasted * width as f64) as usize).min(width - 1), one_line(&phase.name)));
        begins += phase.duration.as_secs_f64();
    }
    marks
}

/// The names below their marks as far as there is room, and how long it all took at the right.
fn legend(marks: &[(usize, String)], figures: &Figures, width: usize) -> String {
    let end = age(figures.lasted);
    let room = width.saturating_sub(end.len());
    let mut line = String::new();
    for (index, (at, name)) in marks.iter().enumerate() {
        let until = marks.get(index + 1).map_or(room, |(next, _)| *next).min(room);
        let used = line.chars().count();
        if *at >= used && until > at + 2 {
            line += &" ".repeat(at - used);
            line += &fit(name, until - at - 1);
        }
    }
    let used = line.chars().count();
    line + &" ".repeat(room.saturating_sub(used)) + &end
}
