//! Logs, to standard error, as text or JSON, with a filter that can change while the server runs;
//! and traces, where a collector is configured.

pub mod traces;

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, IsTerminal as _},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
pub use traces::Traces;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::MakeWriter, layer::SubscriberExt as _, registry::LookupSpan,
    reload, util::SubscriberInitExt as _,
};

use crate::config::{Config, LogFormat, LogSection};

/// The filter of the logs, which may be replaced.
#[derive(Debug)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    current: String,
    reload_interval: Duration,
}

/// Starts logging, and tracing where there is a collector, for the whole process and once.
///
/// # Errors
/// A filter that does not parse, or a second start.
pub fn init(section: &LogSection, traces: Option<&Traces>) -> anyhow::Result<LogFilter> {
    let (subscriber, filter) = subscriber(section, traces, io::stderr)?;
    subscriber.try_init().context("logging was started before")?;
    Ok(filter)
}

type Boxed = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(
    section: &LogSection,
    traces: Option<&Traces>,
    writer: W,
) -> anyhow::Result<(Boxed, LogFilter)>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&section.filter)?);
    let filter_of = LogFilter {
        handle,
        current: section.filter.clone(),
        reload_interval: section.reload_interval,
    };
    let subscriber: Boxed = match traces {
        // What is not logged costs nothing: one filter for all.
        None => Box::new(Registry::default().with(filter).with(lines(section.format, writer))),
        // Calls are traced whatever is logged.
        Some(traces) => {
            let lines = lines(section.format, writer).with_filter(filter);
            Box::new(Registry::default().with(lines).with(traces.layer()))
        }
    };
    Ok((subscriber, filter_of))
}

fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(writer);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(filter).context("log.filter")
}

impl LogFilter {
    /// Logs by another filter from now on.
    ///
    /// # Errors
    /// It does not parse. The one before stays.
    pub fn replace(&mut self, filter: &str) -> anyhow::Result<()> {
        self.handle.reload(parse(filter)?)?;
        self.current = filter.to_owned();
        Ok(())
    }

    /// Goes over to the `log.filter` of the configuration at SIGHUP, and when the file has changed
    /// since it was last looked at: in a pod nobody can send a signal. What cannot be read or parsed
    /// is logged, and changes nothing.
    ///
    /// # Errors
    /// When the signal cannot be waited for.
    pub fn follow(
        mut self,
        path: &Path,
    ) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
        let path = path.to_owned();
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            let mut seen = None;
            loop {
                let look = tokio::time::timeout(self.reload_interval, hangup.recv());
                let told = match look.await {
                    Ok(Some(())) => true,
                    Ok(None) => return,
                    Err(_) => false,
                };
                let found = digest(&path);
                if told || found != seen {
                    seen = found;
                    self.read_again(&path, told);
                }
            }
        })
    }

    /// Reads the configuration again, and says so if the filter is another or if somebody asked.
    fn read_again(&mut self, path: &Path, asked: bool) {
        let read = Config::load(path, env::vars_os()).map_err(anyhow::Error::new);
        let replaced = read.and_then(|config| {
            let another = config.log.filter != self.current;
            self.replace(&config.log.filter).map(|()| another)
        });
        match replaced {
            // At a level that any filter lets through.
            Ok(another) if asked || another => {
                tracing::error!(filter = self.current, "log.filter was read again");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "log.filter cannot be read again; the one before stays in use"
            ),
        }
    }
}

/// Tells one content of a file from another without keeping a copy of what may hold a password.
fn digest(path: &Path) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(path).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn started(format: LogFormat, filter: &str) -> (Lines, Boxed, LogFilter) {
        let lines = Lines::default();
        let section = LogSection { format, filter: filter.into(), ..LogSection::default() };
        let writer = lines.clone();
        let (subscriber, filter) = subscriber(&section, None, move || writer.clone()).unwrap();
        (lines, subscriber, filter)
    }

    fn logged(format: LogFormat, filter: &str) -> String {
        let (lines, subscriber, _) = started(format, filter);
        tracing::subscriber::with_default(subscriber, || {
            let _call = tracing::info_span!("call", request_id = "7b1d").entered();
            tracing::info!(pools = 3, "swept");
            tracing::debug!("details");
        });
        lines.text()
    }

    #[test]
    fn json_lines_are_json_and_name_the_request() {
        let text = logged(LogFormat::Json, "info");
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((&line["message"], &line["pools"]), (&"swept".into(), &3.into()));
        assert_eq!(line["span"]["request_id"], "7b1d");
    }

    #[test]
    fn the_filter_decides() {
        assert!(logged(LogFormat::Text, "info").trim_end().ends_with("swept pools=3"));
        assert_eq!(logged(LogFormat::Text, "debug").lines().count(), 2);
        assert_eq!(logged(LogFormat::Text, "info,keypool_service=warn"), "");
    }

    #[test]
    fn the_filter_is_replaced_while_it_runs_and_a_bad_one_changes_nothing() {
        let (lines, subscriber, mut filter) = started(LogFormat::Text, "warn");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("one");
            filter.replace("info").unwrap();
            tracing::info!("two");
            filter.replace("info,=").unwrap_err();
            tracing::info!("three");
        });
        let text = lines.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("two") && text.contains("three"), "{text}");
    }
}
