//! The measurement of idle streams works.

use std::{env, fs, process::Command};

#[test]
fn idle_streams_are_counted_and_their_memory_is_measured() {
    let test = env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap();
    let (program, server) = (built.join("examples/idle-streams"), built.join("keypool"));
    assert!(program.exists() && server.exists(), "build them first, as script/test does");
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("row.json");

    let ran = Command::new(program).args(["--streams", "200", "--json"]).arg(&json).output();
    let ran = ran.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let table = String::from_utf8(ran.stdout).unwrap();
    assert!(table.starts_with("streams"), "{table}");
    let row: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!((row["streams"].as_u64(), row["connections"].as_u64()), (Some(200), Some(2)));
    let [before, after, each] =
        ["resident_bytes_before", "resident_bytes_after", "bytes_per_stream"]
            .map(|name| row[name].as_u64().unwrap());
    assert!(before > 0 && after > before, "{row}");
    assert_eq!(each, (after - before) / 200);
}
