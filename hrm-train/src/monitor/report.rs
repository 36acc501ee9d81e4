//! `report.html`: curves, the best score and the config of a run in one file without references.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;
use serde_json::Value;

use super::{clock, read};
use crate::checkpoint::write_atomic;
use crate::evaluate::{HoldoutScore, Share};
use crate::run_config::RunConfig;

/// A curve: what it is called, and its points (step, value).
type Curve = (&'static str, Vec<(f64, f64)>);

/// Writes `report.html` of the run in `folder` from its `metrics.jsonl`.
///
/// # Errors
/// The file system refuses.
pub fn write_report(folder: &Path, config: &RunConfig, best: Option<&HoldoutScore>, seconds: f64) -> anyhow::Result<()> {
    let records = read(folder)?;
    let curve = |kind: &str, value: &dyn Fn(&Value) -> Option<f64>| -> Vec<(f64, f64)> {
        records.iter().filter(|r| r["kind"] == kind).filter_map(|r| Some((r["step"].as_f64()?, value(r)?))).collect()
    };
    let train = |key: &'static str| curve("train", &|r| r[key].as_f64());
    let exact = curve("eval", &|r| Some(r["score"]["exact"].as_f64()? / r["score"]["puzzles"].as_f64()?));
    let charts: [(&str, Vec<Curve>); 5] = [
        ("Loss (cross entropy a cell)", vec![("training rows", train("loss"))]),
        (
            "Share of puzzles right in every cell",
            vec![("training rows when they halt", train("exact_at_halt")), ("held-out training puzzles", exact)],
        ),
        (
            "Share of right cells",
            vec![("training rows", train("cells")), ("held-out training puzzles", curve("eval", &|r| r["score"]["cells"].as_f64()))],
        ),
        ("Segments until a row halts", vec![("training rows", train("segments_at_halt"))]),
        ("Learning rate", vec![("", train("lr"))]),
    ];
    let mut html = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Training run</title>\n\
         <style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:1em;overflow:auto}</style>\n\
         <h1>Training run</h1>\n",
    );
    let t = &config.train;
    let _ = writeln!(
        html,
        "<p>Protocol {}, seed {}, {} steps of {} puzzles, {} of wall time. {}</p>",
        escape(&config.data.protocol),
        t.seed,
        t.steps,
        t.batch,
        clock(seconds),
        best.map_or_else(
            || "Not evaluated yet.".to_owned(),
            |b| format!(
                "Best on held-out training puzzles: step {}, exact {} of {} after {} segments (95 % interval).",
                b.step,
                Share::new(b.exact, b.puzzles),
                b.puzzles,
                b.segments
            )
        )
    );
    for (title, curves) in &charts {
        html += &chart(title, curves)?;
    }
    let _ = writeln!(html, "<h2>Config</h2>\n<pre>{}</pre>\n</html>", escape(&config.to_toml()?));
    write_atomic(&folder.join("report.html"), html.as_bytes())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One chart as inline SVG; a curve without points is left out.
fn chart(title: &str, curves: &[Curve]) -> anyhow::Result<String> {
    let points = || curves.iter().flat_map(|c| &c.1);
    let (mut low, mut high) = points().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(p.1), h.max(p.1)));
    if low > high {
        return Ok(String::new());
    }
    let (first, last) = points().fold((f64::INFINITY, 0.0), |(f, l), p| (p.0.min(f), p.0.max(l)));
    let pad = (0.05 * (high - low)).max(1e-9 + 1e-3 * high.abs());
    (low, high) = (low - pad, high + pad);
    let mut svg = String::new();
    // plotters' errors borrow the drawing area.
    let plain = |e: &dyn std::fmt::Display| anyhow!("the chart {title:?} cannot be drawn: {e}");
    {
        let area = SVGBackend::with_string(&mut svg, (800, 320)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(first..last.max(first + 1.0), low..high)
            .map_err(|e| plain(&e))?;
        let number = |v: &f64| format!("{v:.4}").trim_end_matches('0').trim_end_matches('.').to_owned();
        let tiny = |v: &f64| if high < 0.05 { format!("{v:.1e}") } else { number(v) };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&tiny)
            .draw()
            .map_err(|e| plain(&e))?;
        for (i, (name, points)) in curves.iter().enumerate().filter(|(_, c)| !c.1.is_empty()) {
            let colour = Palette99::pick(i).to_rgba();
            let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2))).map_err(|e| plain(&e))?;
            if !name.is_empty() {
                drawn.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            }
        }
        if curves.iter().any(|c| !c.0.is_empty()) {
            chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw().map_err(|e| plain(&e))?;
        }
        area.present().map_err(|e| plain(&e))?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_holds_every_curve_and_refers_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let records = [
            r#"{"kind":"train","step":10,"loss":2.0,"cells":0.4,"lr":0.001,"exact_at_halt":null,"segments_at_halt":null}"#,
            r#"{"kind":"train","step":20,"loss":1.0,"cells":0.6,"lr":0.0005,"exact_at_halt":0.1,"segments_at_halt":9.0}"#,
            r#"{"kind":"eval","step":20,"score":{"puzzles":8,"exact":2,"cells":0.7}}"#,
            r#"{"kind":"train","step":30,"lo"#,
        ];
        std::fs::write(folder.path().join("metrics.jsonl"), records.join("\n")).unwrap();
        let config = RunConfig::parse("[data]\nprotocol = \"a < b\"\ngenerate = { n = 10 }\n", &[]).unwrap();
        let best = HoldoutScore { step: 20, puzzles: 8, segments: 16, exact: 2, cells: 0.7 };
        write_report(folder.path(), &config, Some(&best), 75.0).unwrap();
        let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert_eq!(html.matches("<svg").count(), 5);
        // Loss, right cells, learning rate: a line each of two points or more; exact at halt and held-out have one point, which is a line too.
        assert!(html.matches("<polyline").count() >= 5, "{html}");
        for part in ["a &lt; b", "25.00 %", "1:15", "held-out training puzzles", "[train]"] {
            assert!(html.contains(part), "{part} is missing");
        }
        assert!(!html.contains("href=") && !html.contains("src="));
    }
}
