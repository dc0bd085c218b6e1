//! Memory pressure over the last minutes as a picture: the peak of each slot as a curve, against the four thresholds.

use super::text::{Percent, Span, push};
use crate::core::governor::Level;
use crate::core::settings::MemorySettings;
use crate::scheduler::history::{Peaks, SLOT, SLOTS};

/// The last point's place: one unit a slot, of which the newest is at the right edge.
pub const WIDTH: usize = SLOTS - 1;
pub const MINUTES: u64 = SLOT.as_secs() * SLOTS as u64 / 60;

/// Full height in units, one for each thousandth. What is above 100 % is drawn at the upper edge.
const HEIGHT: u16 = 1000;

/// Of the picture on the screen, which its labels share: see `.chart svg` in page.html.
const HEIGHT_PX: f64 = 264.0;
const LABEL_PX: f64 = 13.5;

/// Where the eye finds its way, as far as no threshold is there.
const QUARTERS: [f64; 3] = [0.5, 0.25, 0.0];

pub fn peak(page: &mut String, history: &Peaks) {
    match history.iter().max() {
        Some(highest) => {
            let known = SLOT * history.len() as u32;
            let highest = Percent(f64::from(*highest) / 1000.0);
            push(page, format_args!("highest of the last {}: {highest}", Span(known)));
        }
        None => page.push_str("no reading yet"),
    }
}

/// What lies under the curve: a line every two minutes and at each quarter, and at each threshold a line and what is above it up to the
/// next.
pub fn plot(page: &mut String, settings: &MemorySettings) {
    let every = 120 / SLOT.as_secs() as usize;
    for x in (1..).map(|nth| WIDTH.saturating_sub(nth * every)).take_while(|x| *x > 0) {
        push(page, format_args!("<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"{HEIGHT}\"/>"));
    }
    for ratio in QUARTERS {
        let y = y(ratio);
        push(page, format_args!("<line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{y}\" y2=\"{y}\"/>"));
    }
    let mut upper = 0;
    for level in Level::ALL.into_iter().rev() {
        let Some(ratio) = level.begins_at(settings) else { continue };
        let (y, tone) = (y(ratio), level.name());
        push(
            page,
            format_args!(
                "<rect class=\"band {tone}\" x=\"0\" y=\"{upper}\" width=\"{WIDTH}\" height=\"{}\"/>\
                 <line class=\"threshold {tone}\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{y}\" y2=\"{y}\"/>",
                y.saturating_sub(upper)
            ),
        );
        upper = y;
    }
}

/// The names of the thresholds beside the picture, each at its line or, where it would cover the one above, below it.
pub fn scale(page: &mut String, settings: &MemorySettings) {
    let mut free_from = LABEL_PX - 3.0;
    for level in Level::ALL.into_iter().rev() {
        let Some(ratio) = level.begins_at(settings) else { continue };
        let middle = f64::from(y(ratio)) / f64::from(HEIGHT) * HEIGHT_PX + 4.0;
        let base = middle.max(free_from);
        free_from = base + LABEL_PX;
        let (name, percent) = (level.name(), ratio * 100.0);
        push(
            page,
            format_args!("<text class=\"{name}\" x=\"0\" y=\"{base:.0}\">{name} {:.0} %</text>", percent.round()),
        );
    }
    for ratio in QUARTERS {
        let base = f64::from(y(ratio)) / f64::from(HEIGHT) * HEIGHT_PX + 4.0;
        if base >= free_from {
            let percent = ratio * 100.0;
            push(page, format_args!("<text class=\"plain\" x=\"0\" y=\"{base:.0}\">{percent:.0} %</text>"));
        }
    }
}

pub fn curve(page: &mut String, history: &Peaks) {
    let mut gap = "";
    for (nth, peak) in history.iter().enumerate() {
        let (x, y) = (first(history) + nth, HEIGHT - (*peak).min(HEIGHT));
        push(page, format_args!("{gap}{x},{y}"));
        gap = " ";
    }
}

pub fn area(page: &mut String, history: &Peaks) {
    if !history.is_empty() {
        push(page, format_args!("{},{HEIGHT} ", first(history)));
        curve(page, history);
        push(page, format_args!(" {WIDTH},{HEIGHT}"));
    }
}

fn first(history: &Peaks) -> usize {
    (WIDTH + 1).saturating_sub(history.len())
}

fn y(ratio: f64) -> u16 {
    HEIGHT - ((ratio * f64::from(HEIGHT)).round() as u16).min(HEIGHT)
}
