//! What a server shows Prometheus.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::server::{Server, until};

/// One sample of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// With the suffix that a histogram's samples have.
    pub name: String,
    /// By name, in the order of the text.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

/// All metrics of one moment.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// As it was sent.
    pub text: String,
    /// The lines with values.
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// Asks the server's port for metrics.
    pub async fn of(server: &Server) -> Self {
        let (head, text) = get(metrics_address(server).await, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = samples.map(sample).collect();
        Self { text, samples }
    }

    /// The sum of the samples of this name that have all these labels; none without any.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &Sample, (key, value): &(&str, &str)| {
            sample.labels.iter().any(|(k, v)| k == key && v == value)
        };
        let fits = |it: &&Sample| it.name == name && labels.iter().all(|label| has(it, label));
        let found: Vec<f64> = self.samples.iter().filter(fits).map(|it| it.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }
}

/// Returns once the metric has this value.
pub async fn reaches(server: &Server, name: &str, labels: &[(&str, &str)], value: f64) {
    until(async || Scrape::of(server).await.value(name, labels) == Some(value)).await;
}

/// Where a server shows its metrics, as its log tells it.
pub async fn metrics_address(server: &Server) -> SocketAddr {
    let told = "metrics address=";
    server.logged(told).await;
    let log = server.log();
    let (_, rest) = log.split_once(told).expect("what was waited for");
    rest.split_whitespace().next().expect("an address").parse().expect("an address")
}

/// The head and the body of the answer to a GET.
pub async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

fn sample(line: &str) -> Sample {
    let (name, value) = line.rsplit_once(' ').expect("NAME VALUE");
    let value = value.parse().expect("a number");
    let Some((name, labels)) = name.split_once('{') else {
        return Sample { name: name.into(), labels: Vec::new(), value };
    };
    let labels = labels.strip_suffix('}').expect("the end of the labels");
    let label = |label: &str| {
        let (key, value) = label.split_once("=\"").expect("KEY=\"VALUE\"");
        (key.to_owned(), value.trim_end_matches('"').to_owned())
    };
    // No value of these metrics holds a comma or a quote.
    Sample { name: name.into(), labels: labels.split(',').map(label).collect(), value }
}
