//! Small SVG charts that follow the reader's light or dark setting.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;

/// Style of all charts: text and axes follow the theme, the series have colours that are told apart on both backgrounds and by the
/// colour-blind (Okabe and Ito).
const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600}.a{stroke:#888;fill:none}.g{stroke:#8884;fill:none}\
.bg{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#ddd}.bg{fill:#16181c}}</style>";
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"];

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line.
    Line,
    /// A thin, pale line without a legend entry: one of many.
    Faint,
    /// Dots.
    Dots,
    /// Bars from 0, `width` of the x axis each.
    Bars,
}

struct Series {
    name: String,
    mark: Mark,
    points: Vec<(f64, f64)>,
}

/// A chart of series over one x and one y axis.
pub struct Chart {
    title: String,
    x: String,
    y: String,
    log_y: bool,
    y_range: Option<(f64, f64)>,
    bar: f64,
    series: Vec<Series>,
}

impl Chart {
    /// An empty chart with its title and the axes' names (with units).
    #[must_use]
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self { title: title.into(), x: x.into(), y: y.into(), log_y: false, y_range: None, bar: 1.0, series: Vec::new() }
    }

    /// A logarithmic y axis; points at or below 0 are left out.
    #[must_use]
    pub const fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Bars stand for so much of the x axis each; 1 unless set.
    #[must_use]
    pub const fn bar_width(mut self, x: f64) -> Self {
        self.bar = x;
        self
    }

    /// A fixed y axis.
    #[must_use]
    pub const fn y_range(mut self, low: f64, high: f64) -> Self {
        self.y_range = Some((low, high));
        self
    }

    /// Adds a series.
    #[must_use]
    pub fn with(mut self, name: &str, mark: Mark, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let usable = |p: &(f64, f64)| p.0.is_finite() && p.1.is_finite() && (!self.log_y || p.1 > 0.0);
        let points: Vec<_> = points.into_iter().filter(usable).collect();
        self.series.push(Series { name: name.into(), mark, points });
        self
    }

    /// The chart as an SVG element.
    #[must_use]
    pub fn svg(&self) -> String {
        let all = || self.series.iter().flat_map(|s| s.points.iter().copied());
        let (mut x0, mut x1) = extent(all().map(|p| p.0));
        let scale = |v: f64| if self.log_y { v.log10() } else { v };
        let (mut y0, mut y1) = extent(all().map(|p| scale(p.1)));
        if !self.log_y && self.series.iter().any(|s| s.mark == Mark::Bars) {
            y0 = y0.min(0.0);
        }
        if let Some((low, high)) = self.y_range {
            (y0, y1) = (scale(low), scale(high));
        }
        if self.series.iter().any(|s| s.mark == Mark::Bars) {
            (x0, x1) = (x0 - self.bar / 2.0, x1 + self.bar / 2.0);
        }
        let px = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - (scale(y).clamp(y0, y1) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let mut out = open(&self.title);
        for tick in ticks(x0, x1) {
            let at = px(tick);
            let _ = write!(out, "<path class=\"g\" d=\"M{at:.1} {TOP}V{:.1}\"/>", HEIGHT - BOTTOM);
            let _ = write!(out, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", HEIGHT - BOTTOM + 16.0, label(tick));
        }
        for tick in ticks(y0, y1) {
            let value = if self.log_y { 10f64.powf(tick) } else { tick };
            let at = py(value);
            let _ = write!(out, "<path class=\"g\" d=\"M{LEFT} {at:.1}H{:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, at + 4.0, label(value));
        }
        let _ = write!(out, "<path class=\"a\" d=\"M{LEFT} {TOP}V{:.1}H{:.1}\"/>", HEIGHT - BOTTOM, WIDTH - RIGHT);
        axis_names(&mut out, &self.x, &self.y);
        let bars = self.series.iter().filter(|s| s.mark == Mark::Bars).count().max(1) as f64;
        let (mut colour, mut bar) = (0, 0.0);
        for s in &self.series {
            let c = COLOURS[colour % COLOURS.len()];
            match s.mark {
                Mark::Faint => line(&mut out, "#8886", 1.0, s.points.iter().map(|&(x, y)| (px(x), py(y)))),
                Mark::Line => line(&mut out, c, 2.0, s.points.iter().map(|&(x, y)| (px(x), py(y)))),
                Mark::Dots => {
                    for &(x, y) in &s.points {
                        let _ = write!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{c}\" fill-opacity=\".7\"/>", px(x), py(y));
                    }
                }
                Mark::Bars => {
                    let w = 0.8 * (px(self.bar) - px(0.0)) / bars;
                    for &(x, y) in &s.points {
                        let left = px(x) - w * bars / 2.0 + bar * w;
                        let (top, height) = (py(y), (py(if self.log_y { y } else { 0.0 }) - py(y)).max(0.0));
                        let _ = write!(out, "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{w:.1}\" height=\"{height:.1}\" fill=\"{c}\"/>");
                    }
                    bar += 1.0;
                }
            }
            if s.mark != Mark::Faint {
                colour += 1;
            }
        }
        self.legend(&mut out);
        out + "</svg>"
    }

    /// One row under the title.
    fn legend(&self, out: &mut String) {
        let named: Vec<_> = self.series.iter().filter(|s| s.mark != Mark::Faint).collect();
        if named.len() < 2 {
            return;
        }
        let mut x = LEFT;
        for (i, s) in named.iter().enumerate() {
            let c = COLOURS[i % COLOURS.len()];
            let _ = write!(
                out,
                "<rect x=\"{x:.1}\" y=\"22\" width=\"10\" height=\"8\" fill=\"{c}\"/><text x=\"{:.1}\" y=\"30\" style=\"font-size:11px\">{}</text>",
                x + 13.0,
                escape(&s.name)
            );
            x += 24.0 + 6.1 * s.name.chars().count() as f64;
        }
    }
}

/// The error over a plane of states, with arrows and a path.
pub struct Landscape<'a> {
    /// Title.
    pub title: &'a str,
    /// Half the side of the square, around `centre`.
    pub reach: f64,
    /// Middle of the square.
    pub centre: (f64, f64),
    /// Error at each point of a square grid, row by row from low y.
    pub errors: &'a [Vec<f64>],
    /// Error that gets the darkest colour.
    pub worst: f64,
    /// Where a segment takes a state: from, to.
    pub arrows: &'a [((f64, f64), (f64, f64))],
    /// The states of a run.
    pub path: &'a [(f64, f64)],
}

impl Landscape<'_> {
    /// The picture as an SVG element.
    #[must_use]
    pub fn svg(&self) -> String {
        let side = HEIGHT - TOP - BOTTOM;
        let px = |x: f64| LEFT + (x - self.centre.0 + self.reach) / (2.0 * self.reach) * side;
        let py = |y: f64| HEIGHT - BOTTOM - (y - self.centre.1 + self.reach) / (2.0 * self.reach) * side;
        let mut out = open(self.title);
        let n = self.errors.len();
        let cell = side / n as f64;
        out += "<g shape-rendering=\"crispEdges\">";
        for (j, row) in self.errors.iter().enumerate() {
            // Neighbours of one colour are one rectangle.
            let mut i = 0;
            while i < n {
                let colour = shade((row[i] / self.worst).clamp(0.0, 1.0));
                let same = row[i..].iter().take_while(|&&e| shade((e / self.worst).clamp(0.0, 1.0)) == colour).count();
                let (x, y) = (LEFT + i as f64 * cell, HEIGHT - BOTTOM - (j + 1) as f64 * cell);
                let (width, (r, g, b)) = (same as f64 * cell, colour);
                let _ = write!(out, "<path d=\"M{x:.1} {y:.1}h{width:.1}v{cell:.1}h-{width:.1}\" fill=\"#{r:02x}{g:02x}{b:02x}\"/>");
                i += same;
            }
        }
        out += "</g>";
        for &(from, to) in self.arrows {
            // Long arrows would hide each other: direction is kept, length is cut.
            let (dx, dy) = (px(to.0) - px(from.0), py(to.1) - py(from.1));
            let f = (16.0 / (dx * dx + dy * dy).sqrt().max(1e-9)).min(1.0);
            let (x, y) = (px(from.0), py(from.1));
            let _ = write!(
                out,
                "<path d=\"M{x:.1} {y:.1}l{:.1} {:.1}\" stroke=\"#fff\" stroke-width=\"1.2\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.4\" fill=\"#fff\"/>",
                dx * f,
                dy * f
            );
        }
        line(&mut out, COLOURS[1], 2.0, self.path.iter().map(|&(x, y)| (px(x), py(y))));
        for (i, &(x, y)) in self.path.iter().enumerate() {
            let r = if i == 0 || i + 1 == self.path.len() { 4.5 } else { 2.2 };
            let fill = if i + 1 == self.path.len() { COLOURS[4] } else { COLOURS[1] };
            let _ = write!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{r}\" fill=\"{fill}\"/>", px(x), py(y));
        }
        let _ = write!(out, "<rect class=\"a\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{side}\" height=\"{side}\"/>");
        for t in ticks(-self.reach, self.reach) {
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                px(self.centre.0 + t),
                HEIGHT - BOTTOM + 16.0,
                label(t)
            );
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                py(self.centre.1 + t) + 4.0,
                label(t)
            );
        }
        let x = LEFT + side + 24.0;
        for (i, share) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().enumerate() {
            let (r, g, b) = shade(share);
            let y = TOP + 22.0 * i as f64;
            let _ = write!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"18\" height=\"18\" fill=\"rgb({r},{g},{b})\"/><text x=\"{}\" y=\"{}\">{} broken rules</text>",
                x + 24.0,
                y + 13.0,
                label(share * self.worst)
            );
        }
        for (i, text) in ["line: the run to its last state (yellow)", "white: where one segment leads"].into_iter().enumerate() {
            let _ = write!(out, "<text x=\"{x}\" y=\"{}\">{text}</text>", TOP + 140.0 + 18.0 * i as f64);
        }
        axis_names(&mut out, "first principal component of z_H, from the last state", "second component");
        out + "</svg>"
    }
}

fn shade(t: f64) -> (u8, u8, u8) {
    let mix = |a: f64, b: f64| (a + (b - a) * t) as u8;
    (mix(60.0, 20.0), mix(170.0, 24.0), mix(150.0, 60.0))
}

fn open(title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\">{STYLE}\
         <rect class=\"bg\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/><text class=\"t\" x=\"{LEFT}\" y=\"15\">{}</text>",
        escape(title)
    )
}

fn axis_names(out: &mut String, x: &str, y: &str) {
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    let _ = write!(out, "<text x=\"{LEFT}\" y=\"{:.1}\">{}</text>", HEIGHT - 12.0, escape(x));
    let _ = write!(out, "<text transform=\"translate(14 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>", escape(y));
}

fn line(out: &mut String, colour: &str, width: f64, points: impl Iterator<Item = (f64, f64)>) {
    let mut d = String::new();
    for (i, (x, y)) in points.enumerate() {
        let _ = write!(d, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    let _ = write!(out, "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>");
}

/// Smallest and largest value, apart from each other.
fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match (low.is_finite(), high > low) {
        (false, _) => (0.0, 1.0),
        (true, false) => (low - 0.5, low + 0.5),
        (true, true) => (low, high),
    }
}

/// Five or so round numbers.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|&t| t <= high + 1e-9 * step).collect()
}

fn label(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if !(0.001..100_000.0).contains(&a) => format!("{v:.0e}"),
        a if a >= 10.0 => format!("{v:.0}"),
        _ => format!("{v:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// Text inside markup.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_land_where_the_axes_say() {
        let chart = Chart::new("a < b", "x", "y").y_range(0.0, 1.0).with("one", Mark::Dots, [(0.0, 0.0), (10.0, 1.0), (5.0, f64::NAN)]);
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.matches("<circle").count() == 2);
        let corner = format!("cx=\"{:.1}\" cy=\"{:.1}\"", WIDTH - RIGHT, TOP);
        assert!(svg.contains(&corner), "{svg}");
        assert!(svg.contains(&format!("cx=\"{LEFT:.1}\" cy=\"{:.1}\"", HEIGHT - BOTTOM)));
    }

    #[test]
    fn logarithmic_axes_leave_out_what_has_no_logarithm() {
        let svg = Chart::new("t", "x", "y").log_y().with("a", Mark::Dots, [(0.0, 0.0), (1.0, 0.01), (2.0, 100.0)]).svg();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!([label(0.25), label(1234.0), label(1e-7)], ["0.25", "1234", "1e-7"]);
    }
}
