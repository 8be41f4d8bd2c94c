//! What processes cost the machine, from proc(5).

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

/// The unit of the times in `/proc/PID/stat`, which is the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds used so far, user and system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuTimes {
    /// The process's own.
    pub(crate) own: f64,
    /// Those of its children that have ended and been waited for.
    pub(crate) ended_children: f64,
}

/// The CPU times of a process.
pub(crate) fn cpu_times(pid: u32) -> anyhow::Result<CpuTimes> {
    cpu_times_in(&Path::new("/proc").join(pid.to_string()))
}

fn cpu_times_in(process: &Path) -> anyhow::Result<CpuTimes> {
    let fields = stat(process)?;
    // Counted from field 3 of proc(5).
    let seconds = |field: usize| {
        let ticks: Option<f64> = fields.get(field - 3).and_then(|ticks| ticks.parse().ok());
        ticks.map(|ticks| ticks / TICKS_PER_SECOND).context("not the stat of a process")
    };
    Ok(CpuTimes { own: seconds(14)? + seconds(15)?, ended_children: seconds(16)? + seconds(17)? })
}

/// The fields of `/proc/PID/stat` from the third on: the second may hold spaces.
fn stat(process: &Path) -> anyhow::Result<Vec<String>> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("not the stat of a process")?;
    Ok(fields.split(' ').map(str::to_owned).collect())
}

/// Who started a process.
pub(crate) fn parent(pid: u32) -> anyhow::Result<u32> {
    let fields = stat(&Path::new("/proc").join(pid.to_string()))?;
    fields.get(1).context("not the stat of a process")?.parse().context("a parent")
}

/// The CPU seconds of a process and of all its children, those that have ended too. Grandchildren
/// are not looked for: Postgres has none.
pub(crate) fn family_cpu(pid: u32) -> anyhow::Result<f64> {
    let times = cpu_times(pid)?;
    let mut seconds = times.own + times.ended_children;
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // One that ends meanwhile is none.
        let Ok(fields) = stat(&process) else { continue };
        if fields.get(1).is_some_and(|parent| *parent == pid.to_string()) {
            seconds += cpu_times_in(&process).map_or(0.0, |times| times.own);
        }
    }
    Ok(seconds)
}

/// The resident memory of a process and the most it ever was, KiB.
pub(crate) fn memory_kib(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib =
            line.and_then(|line| line.trim().strip_suffix(" kB")).context("no such figure")?;
        Ok::<u64, anyhow::Error>(kib.trim().parse()?)
    };
    Ok((value("VmRSS:")?, value("VmHWM:")?))
}

/// The memory of the machine, bytes.
pub(crate) fn memory_bytes() -> anyhow::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no MemTotal")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

/// How many bytes are free where `path` lies.
pub(crate) fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let output = Command::new("df").arg("-Pk").arg(path).output().context("running df")?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("df says nothing")?;
    let kib: u64 = line.split_whitespace().nth(3).context("df's columns")?.parse()?;
    Ok(kib * 1024)
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
