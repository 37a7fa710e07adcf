//! Draws the picture of the operations page: the panels of the dashboard, from what a real Prometheus answers to their queries.
//!
//! ```text
//! cargo test -p metrics-example --all-features --test numbers -- --ignored dashboard    # two minutes
//! ```
//!
//! Three gateways are under load. The first drains and starts anew. The second dies, and the others recover its sessions. A
//! fourth joins before that. The third loses its registry for some seconds.

use std::{collections::BTreeMap, env, fmt::Write, fs, future::pending, time::Duration};

use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tower_session_end::{ActiveSessions, BoxError, EndReason, SessionEnd, SessionHook};

use crate::{
    operations::DASHBOARD,
    prometheus::{Prometheus, as_grafana_asks},
    store::{Fault, Holder, Store},
    support::Exporter,
};

const LENGTH: u32 = 120;

/// The starts a second of the gateway that dies.
const DYING: u32 = 30;

/// A second of the picture takes as long in the test.
fn at(second: u32) -> Duration {
    Duration::from_secs(1) * second
}

/// Takes up to 60 ms, and fails for some sessions, but for those of the gateway that dies: ends that are called again would
/// keep a dropped handle alive.
struct Archive {
    fails: bool,
}

impl SessionHook for Archive {
    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        let number = end.session.id.as_str().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        sleep(Duration::from_millis(u64::from(number % 60))).await;
        if self.fails && number.is_multiple_of(97) { Err("no".into()) } else { Ok(()) }
    }

    fn name(&self) -> &str {
        "archive"
    }
}

/// A gateway until `until`: it starts sessions, and ends most of them.
async fn load(
    exporter: &Exporter,
    holder: &Holder,
    began: Instant,
    (from, until): (u32, u32),
    rate: u32,
) -> (ActiveSessions, JoinHandle<()>) {
    let sessions =
        exporter.build(ActiveSessions::builder().registry(holder.clone()).hook(Archive { fails: rate != DYING }));
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let reasons = [EndReason::Reset, EndReason::Deleted, EndReason::Daily];
    let id = |step: u32| format!("{}-{from}-{step}", holder.number());
    for step in 0..(until - from) * rate {
        sleep_until(began + at(from) + at(1) / rate * step).await;
        let _ = sessions.note(id(step));
        match step % 10 {
            0 => drop(sessions.note("two words")),
            1..=8 if step >= 8 * rate => drop(sessions.end(id(step - 8 * rate), reasons[step as usize % 3])),
            9 if step >= 20 * rate => drop(sessions.forget(id(step - 20 * rate))),
            _ => {}
        }
    }
    (sessions, driver)
}

/// Text in an SVG.
fn text(svg: &mut String, (x, y): (f64, f64), size: u32, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    write!(svg, "<text x=\"{x:.0}\" y=\"{y:.0}\" font-size=\"{size}\">{words}</text>").unwrap();
}

const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e6e6e", "#a0823c"];

/// One panel, 300 by 150.
fn panel(svg: &mut String, panel: &Value, series: &[(String, Vec<(f64, f64)>)]) {
    let size = if panel["type"] == "stat" { 9 } else { 13 };
    text(svg, (8.0, 18.0), size, panel["title"].as_str().unwrap());
    let most = series.iter().flat_map(|(_, points)| points).map(|(_, value)| *value).fold(0.0, f64::max);
    if panel["type"] == "stat" {
        let last = series
            .first()
            .and_then(|(_, points)| points.last())
            .map_or("no data".to_owned(), |(_, value)| value.to_string());
        return text(svg, (8.0, 56.0), 30, &last);
    }
    let unit = match panel["fieldConfig"]["defaults"]["unit"].as_str() {
        Some("ops") => " a second",
        Some("s") => " s",
        _ => "",
    };
    let digits = if most < 10.0 { 2 } else { 0 };
    text(svg, (8.0, 36.0), 10, &format!("{most:.digits$}{unit}"));
    write!(svg, "<path d=\"M8 40H292M8 130H292\" stroke=\"#ccc\"/>").unwrap();
    let mut x = 8.0;
    let is_seen = |series: &&(String, Vec<(f64, f64)>)| series.1.iter().any(|(_, value)| *value > 0.0);
    for ((name, points), colour) in series.iter().filter(is_seen).zip(COLOURS.iter().cycle()) {
        let place = |(second, value): &(f64, f64)| {
            format!("{:.0} {:.1}", 8.0 + second * 284.0 / f64::from(LENGTH), 130.0 - value * 90.0 / most.max(1e-9))
        };
        let line: Vec<_> = points.iter().map(place).collect();
        write!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>", line.join(","))
            .unwrap();
        write!(svg, "<g fill=\"{colour}\">").unwrap();
        text(svg, (x, 144.0), 10, name);
        svg.push_str("</g>");
        x += 5.6 * name.len() as f64 + 8.0;
    }
}

/// The series of an answer: the legend, and the points in seconds after the first one.
fn series(answer: &Value, legend: &str, began: f64) -> Vec<(String, Vec<(f64, f64)>)> {
    let all = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let one = |series: &Value| {
        let labels: BTreeMap<String, String> = serde_json::from_value(series["metric"].clone()).unwrap();
        let name = labels
            .iter()
            .fold(legend.to_owned(), |name, (label, value)| name.replace(&format!("{{{{{label}}}}}"), value));
        let point =
            |point: &Value| (point[0].as_f64().unwrap() - began, point[1].as_str().unwrap().parse::<f64>().unwrap());
        (name, series["values"].as_array().unwrap().iter().map(point).filter(|(_, value)| value.is_finite()).collect())
    };
    all.iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two minutes, and it writes the picture"]
async fn draws_the_dashboard() {
    let store = Store::default();
    let mut exporters = Vec::new();
    for _ in 0..4 {
        exporters.push(Exporter::serve().await);
    }
    let holders = [store.holder(), store.holder(), store.holder()];
    let dir = env::temp_dir().join(format!("dashboard-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let prometheus = Prometheus::start(&dir, &exporters, "1s");
    let [first, second, third, fourth] = exporters.try_into().unwrap_or_else(|_| unreachable!("there are four"));
    let began = Instant::now();
    let began_at = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let drained = async {
        let (sessions, _driver) = load(&first, &holders[0], began, (0, 60), 40).await;
        let _ = sessions.drain(EndReason::Restart).await;
        drop(sessions);
        load(&first, &store.holder(), began, (65, LENGTH), 40).await
    };
    let killed = async {
        let (sessions, driver) = load(&second, &holders[1], began, (0, 40), DYING).await;
        driver.abort();
        drop((sessions, second));
        // Then nothing of it runs any more.
        sleep_until(began + at(41)).await;
        holders[1].kill();
    };
    // Before that, so that Prometheus sees its counters grow.
    let last = store.holder();
    let fourth = load(&fourth, &last, began, (30, LENGTH), 35);
    let outage = async {
        sleep_until(began + at(90)).await;
        holders[2].set(Fault::Down);
        sleep_until(began + at(100)).await;
        holders[2].set(Fault::None);
    };
    let steady = load(&third, &holders[2], began, (0, LENGTH), 20);
    let (_drained, (), _fourth, _steady, ()) = tokio::join!(drained, killed, fourth, steady, outage);

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 620 728\" font-family=\"sans-serif\" fill=\"#222\">",
    );
    svg.push_str("\n<rect width=\"620\" height=\"728\" fill=\"#fff\"/>");
    for shown in dashboard["panels"].as_array().unwrap() {
        let place = |side: &str| shown["gridPos"][side].as_f64().unwrap();
        let mut all = Vec::new();
        for target in shown["targets"].as_array().unwrap() {
            let query = as_grafana_asks(target["expr"].as_str().unwrap()).replace("[30s]", "[5s]");
            let answer = prometheus.range(&query, began_at, LENGTH).await;
            all.extend(series(&answer, target["legendFormat"].as_str().unwrap(), began_at));
        }
        let down = if place("y") == 0.0 { 0.0 } else { 68.0 + (place("y") - 4.0) / 8.0 * 164.0 };
        write!(svg, "\n<g transform=\"translate({:.0} {down:.0})\">", 4.0 + place("x") / 24.0 * 616.0).unwrap();
        panel(&mut svg, shown, &all);
        svg.push_str("</g>");
    }
    svg.push_str("\n</svg>\n");
    for happened in ["gateway-4", "recovered", "lost", "restart", "degradations"] {
        assert!(svg.contains(&format!(">{happened}<")), "{happened}");
    }
    fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/guide/dashboard.svg"), svg).unwrap();
    drop(prometheus);
    fs::remove_dir_all(dir).unwrap();
}
