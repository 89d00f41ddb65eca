//! Plots as SVG, both axes logarithmic. Readable in light and in dark, without a script or a font of our own.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const PANEL: f64 = 230.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
/// With room for two lines of names above a panel, and the numbers of the x axis below one.
const TOP: f64 = 76.0;
const BETWEEN: f64 = 68.0;
const BOTTOM: f64 = 52.0;
/// Told apart by people who see colours differently (Okabe and Ito), on white and on black.
const COLOURS: [&str; 6] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

/// Several panels above each other, with one x axis.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) panels: Vec<Panel<'a>>,
}

/// One y axis.
pub(super) struct Panel<'a> {
    pub(super) y: &'a str,
    pub(super) curves: Vec<Curve<'a>>,
}

pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    /// Greater than 0, as logarithms are.
    pub(super) points: Vec<(f64, f64)>,
}

/// Whole decades around some values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Decades {
    first: i32,
    last: i32,
}

impl Decades {
    fn around(values: impl Iterator<Item = f64> + Clone) -> Decades {
        let least = values.clone().fold(f64::MAX, f64::min).max(1e-12);
        let most = values.fold(0.0, f64::max).max(least);
        let first = least.log10().floor() as i32;
        Decades { first, last: (most.log10().ceil() as i32).max(first + 1) }
    }

    /// From 0 to 1.
    fn place(self, value: f64) -> f64 {
        (value.max(1e-12).log10() - f64::from(self.first)) / f64::from(self.last - self.first)
    }

    fn ticks(self) -> impl Iterator<Item = i32> {
        // At most nine labels.
        let step = ((self.last - self.first) / 8 + 1) as usize;
        (self.first..=self.last).step_by(step)
    }
}

/// `10`, `1k`, `100 M`, `10 m`.
fn label(power: i32) -> String {
    let (group, rest) = (power.div_euclid(3), power.rem_euclid(3) as u32);
    let unit = match group {
        -4 => " p",
        -3 => " n",
        -2 => " \u{b5}",
        -1 => " m",
        0 => "",
        1 => " k",
        2 => " M",
        3 => " G",
        4 => " T",
        _ => return format!("1e{power}"),
    };
    format!("{}{unit}", 10_u32.pow(rest))
}

impl Plot<'_> {
    pub(super) fn svg(&self) -> String {
        let count = self.panels.len() as f64;
        let height = TOP + count * PANEL + (count - 1.0) * BETWEEN + BOTTOM;
        let mut svg = String::new();
        let mut put = |text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(svg, "{text}");
        };
        put(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">"
        ));
        put("<style>\
             .back{fill:#fff}.ink{fill:#222}.grid{stroke:#ddd}.frame{stroke:#888;fill:none}\
             @media(prefers-color-scheme:dark){.back{fill:#0d1117}.ink{fill:#ddd}.grid{stroke:#30363d}}\
             </style>"
            .to_owned());
        put(format!("<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>"));
        put(format!(
            "<text class=\"ink\" x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>",
            escape(self.title)
        ));
        let xs = self.panels.iter().flat_map(|panel| panel.xs());
        let x = Decades::around(xs);
        let across = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        for (number, panel) in self.panels.iter().enumerate() {
            let top = TOP + number as f64 * (PANEL + BETWEEN);
            panel.draw(top, x, &across, &mut put);
        }
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        let bottom = height - 14.0;
        put(format!(
            "<text class=\"ink\" x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{}</text>",
            escape(self.x)
        ));
        put("</svg>".to_owned());
        svg
    }
}

impl Panel<'_> {
    fn xs(&self) -> impl Iterator<Item = f64> + Clone {
        self.curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0))
    }

    fn draw(&self, top: f64, x: Decades, across: &impl Fn(f64) -> f64, put: &mut impl FnMut(String)) {
        let ys = self.curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
        let y = Decades::around(ys);
        let up = |value: f64| top + PANEL - y.place(value) * PANEL;
        let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
        for power in x.ticks() {
            let at = across(10_f64.powi(power));
            put(format!("<path class=\"grid\" d=\"M{at:.1} {top:.1}V{bottom:.1}\"/>"));
            let (text, below) = (label(power), bottom + 16.0);
            put(format!(
                "<text class=\"ink\" x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{text}</text>"
            ));
        }
        for power in y.ticks() {
            let at = up(10_f64.powi(power));
            put(format!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>"));
            let (text, left, at) = (label(power), LEFT - 6.0, at + 4.0);
            put(format!("<text class=\"ink\" x=\"{left}\" y=\"{at:.1}\" text-anchor=\"end\">{text}</text>"));
        }
        put(format!(
            "<rect class=\"frame\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{PANEL}\"/>",
            right - LEFT
        ));
        let (left, middle) = (16.0, top + PANEL / 2.0);
        put(format!(
            "<text class=\"ink\" transform=\"translate({left} {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(self.y)
        ));
        let wide = |curve: &Curve<'_>| 30.0 + 6.6 * curve.name.chars().count() as f64;
        let (mut legend, mut above) = (LEFT, top - 26.0);
        for (curve, colour) in self.curves.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<String> =
                curve.points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
            put(format!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                points.join(" ")
            ));
            for (x, y) in &curve.points {
                let (x, y) = (across(*x), up(*y));
                put(format!("<circle fill=\"{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"));
            }
            if legend + wide(curve) > WIDTH {
                (legend, above) = (LEFT, above + 17.0);
            }
            let (text, behind) = (escape(curve.name), legend + 14.0);
            put(format!(
                "<circle fill=\"{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"/>",
                legend + 5.0,
                above - 4.0
            ));
            put(format!("<text class=\"ink\" x=\"{behind:.1}\" y=\"{above:.1}\">{text}</text>"));
            legend += wide(curve);
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_within_its_panel_and_every_text_is_there() {
        let curve = |name| Curve { name, points: vec![(1.0, 3e-4), (1e3, 0.2), (1e6, 70.0)] };
        let panels = vec![Panel { y: "seconds", curves: vec![curve("a < b"), curve("c")] }];
        let svg = Plot { title: "title", x: "files", panels }.svg();
        assert!(["title", "files", "seconds", "a &lt; b"].iter().all(|text| svg.contains(text)), "{svg}");
        let centres: Vec<(f64, f64)> = svg
            .lines()
            .filter(|line| line.contains("r=\"3\""))
            .map(|line| {
                let number = |name: &str| {
                    let from = line.split(name).nth(1).unwrap();
                    from.split('"').next().unwrap().parse::<f64>().unwrap()
                };
                (number("cx=\""), number("cy=\""))
            })
            .collect();
        assert_eq!(centres.len(), 6);
        let within =
            |(x, y): &(f64, f64)| (LEFT..=WIDTH - RIGHT).contains(x) && (TOP..=TOP + PANEL).contains(y);
        assert!(centres.iter().all(within), "{centres:?}");
    }

    #[test]
    fn ticks_have_units() {
        let labels: Vec<String> = [-6, -4, -1, 0, 2, 4, 9].map(label).to_vec();
        assert_eq!(labels, ["1 \u{b5}", "100 \u{b5}", "100 m", "1", "100", "10 k", "1 G"]);
    }
}
