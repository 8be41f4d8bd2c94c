//! One user's chat, a process.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use keypool_testing::{built::example, tokens::token};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
};

use super::*;

pub(super) struct Person {
    user: String,
    child: Child,
    input: ChildStdin,
    shown: Arc<Mutex<Vec<String>>>,
}

impl Person {
    /// Starts a chat. `at_step` is what it does to itself: see `chat/fault.rs` beside the example.
    pub(super) async fn start(scene: &Scene, user: &str, at_step: Option<String>) -> Self {
        let mut command = Command::new(example("chat"));
        command.args([scene.url(), token(user, "chat"), user.to_owned()]).arg(scene.folder());
        command.env_remove("CHAT_AT_STEP");
        command.envs(at_step.map(|at_step| ("CHAT_AT_STEP", at_step)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let shown: Arc<Mutex<Vec<_>>> = Arc::default();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        tokio::spawn({
            let shown = Arc::clone(&shown);
            async move {
                while let Ok(Some(line)) = output.next_line().await {
                    shown.lock().unwrap().push(line);
                }
            }
        });
        let input = child.stdin.take().unwrap();
        Self { user: user.into(), child, input, shown }
    }

    /// Types lines. Whoever is dead does not hear them.
    pub(super) async fn types(&mut self, lines: &[&str]) {
        for line in lines {
            drop(self.input.write_all(format!("{line}\n").as_bytes()).await);
        }
    }

    /// Returns the first line that is shown with all of these texts.
    pub(super) async fn shows(&mut self, texts: &[&str]) -> String {
        let mut found = None;
        until(async || {
            let ended = self.child.try_wait().unwrap();
            found = self.shown().into_iter().find(|line| texts.iter().all(|it| line.contains(it)));
            let shown = || self.shown().join("\n");
            assert!(found.is_some() || ended.is_none(), "{}: {ended:?}\n{}", self.user, shown());
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    pub(super) fn shown(&self) -> Vec<String> {
        self.shown.lock().unwrap().clone()
    }

    /// Forgets what was shown.
    pub(super) fn looks_away(&self) {
        self.shown.lock().unwrap().clear();
    }

    /// Types a line as often as it takes until one with all of these texts is shown.
    pub(super) async fn types_until(&mut self, line: &str, texts: &[&str]) -> String {
        loop {
            self.types(&[line, "/pool"]).await;
            self.shows(&["pool: "]).await;
            let found = self.shown().into_iter().find(|it| texts.iter().all(|t| it.contains(t)));
            self.looks_away();
            if let Some(found) = found {
                return found;
            }
        }
    }

    pub(super) async fn has_a_pool(&mut self) {
        self.types_until("", &["pool: HEALTH_HEALTHY"]).await;
    }

    /// Ends it once its pool is kept. False when it was killed before.
    pub(super) async fn lives(&mut self) -> bool {
        let (mut ended, mut kept) = (false, false);
        while !ended && !kept {
            self.looks_away();
            self.types(&["/pool"]).await;
            until(async || {
                ended = self.child.try_wait().unwrap().is_some();
                let told = self.shown().into_iter().find(|line| line.starts_with("pool: "));
                kept = told.as_deref() == Some("pool: HEALTH_HEALTHY");
                ended || told.is_some()
            })
            .await;
        }
        self.types(&["/quit"]).await;
        !self.was_killed().await
    }

    /// The group whose name begins so, and its members; `None` when there is none.
    pub(super) async fn group(&mut self, name: &str) -> Option<(String, Vec<String>)> {
        self.looks_away();
        self.types(&["/groups", "/pool"]).await;
        self.shows(&["pool: "]).await;
        let start = format!("{name}-");
        let line = self.shown().into_iter().find(|it| it.starts_with(&start))?;
        let (name, members) = line.split_once(": ").unwrap();
        Some((name.to_owned(), members.split(", ").map(str::to_owned).collect()))
    }

    /// Whether it was killed before it ended by itself.
    pub(super) async fn was_killed(&mut self) -> bool {
        let status: ExitStatus = self.child.wait().await.unwrap();
        assert!(status.success() || status.code().is_none(), "{status}: {:?}", self.shown());
        !status.success()
    }

    pub(super) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Whether it ended, or was stopped by a signal.
    pub(super) fn has_stopped(&mut self) -> Option<bool> {
        if self.child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()?)).unwrap();
        let (_, state) = stat.rsplit_once(") ").unwrap();
        state.starts_with('T').then_some(true)
    }
}
