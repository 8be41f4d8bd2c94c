//! What holds after each step.

use std::collections::{BTreeMap, HashSet};

use sqlx::Row as _;

use super::Walk;

/// Pool, cipher suite and number of a package.
type PackageKey = (i64, i32, i64);

impl Walk {
    pub(super) async fn check(&self, burns: bool, in_order: bool) {
        let pool = &self.world.database.pool;
        // No ref lives twice, nor lives on after it ended.
        let twice = "SELECT count(*) - count(DISTINCT key_package_ref) FROM (
                         SELECT key_package_ref FROM package UNION ALL
                         SELECT key_package_ref FROM tombstone UNION ALL
                         SELECT key_package_ref FROM last_resort) r";
        assert_eq!(self.world.number(twice).await, 0);
        // What was uploaded is live, or in one of the ends.
        let lost = "SELECT count(*) FROM pool_suite u
            WHERE uploaded <> expired + revoked + burned + forgotten
                + (SELECT count(*) FROM package k WHERE (k.bucket, k.pool_id, k.cipher_suite)
                                                      = (u.bucket, u.pool_id, u.cipher_suite))
                + (SELECT count(*) FROM tombstone b WHERE (b.bucket, b.pool_id, b.cipher_suite)
                        = (u.bucket, u.pool_id, u.cipher_suite) AND state = 'spent')";
        assert_eq!(self.world.number(lost).await, 0);
        // A reserved package is in its holder's draw, or nobody would find it when it lapses.
        let unknown = "SELECT count(*) FROM package k
            WHERE state = 'reserved' AND NOT EXISTS (
                SELECT FROM draw d, unnest(d.open) o
                WHERE (d.bucket, d.pool_id, d.caller) = (k.bucket, k.pool_id, k.holder)
                  AND (o.cipher_suite, o.seq, o.generation)
                    = (k.cipher_suite, k.seq, k.generation))";
        assert_eq!(self.world.number(unknown).await, 0);

        // At least so many come after a package as it says of itself. One that ends within the
        // hour is passed over, and not issued any more. Beside others, a Reserve passes over a package
        // that is locked; if whoever has locked it does not take it, it stays behind those that were
        // issued out of its turn.
        let overstated: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM package k
             WHERE generation = 0 AND not_after >= $1 + interval '1 hour' AND behind > (
                 SELECT count(*) FROM package x
                 WHERE (x.bucket, x.pool_id, x.cipher_suite)
                     = (k.bucket, k.pool_id, k.cipher_suite)
                   AND x.generation = 0 AND (x.not_after, x.seq) > (k.not_after, k.seq))
             + CASE WHEN $2 THEN 0 ELSE (
                 SELECT count(*) FROM published x JOIN event e
                     USING (bucket, pool_id, cipher_suite, seq)
                 WHERE (x.bucket, x.pool_id, x.cipher_suite)
                     = (k.bucket, k.pool_id, k.cipher_suite)
                   AND (x.not_after, x.seq) > (k.not_after, k.seq)
                   AND e.kind = 'reserved' AND e.generation = 1) END",
        )
        .bind(self.clock_now())
        .bind(in_order)
        .fetch_one(pool)
        .await
        .unwrap();
        assert_eq!(overstated, 0);

        // The status says what the rows say.
        for owner in &self.owners {
            let rows = sqlx::query(
                "SELECT u.cipher_suite,
                        count(*) FILTER (WHERE k.not_after > $1 AND k.state = 'reserved'
                                           AND k.expires_at > $1) AS reserved,
                        count(*) FILTER (WHERE k.not_after > $1 AND (k.state = 'available'
                                           OR (k.expires_at <= $1 AND NOT $2
                                               AND k.revoked_at IS NULL))) AS available,
                        u.expired + count(*) FILTER (WHERE k.not_after <= $1) AS expired,
                        (SELECT count(*) FROM tombstone b
                         WHERE (b.bucket, b.pool_id, b.cipher_suite)
                             = (u.bucket, u.pool_id, u.cipher_suite) AND b.state = 'spent') AS spent
                 FROM pool p JOIN pool_suite u USING (bucket, pool_id)
                 LEFT JOIN package k USING (bucket, pool_id, cipher_suite)
                 WHERE p.user_id = $3
                 GROUP BY u.bucket, u.pool_id, u.cipher_suite ORDER BY u.cipher_suite",
            )
            .bind(self.clock_now())
            .bind(burns)
            .bind(owner.user.as_str())
            .fetch_all(pool)
            .await
            .unwrap();
            let status = self.world.a.status(owner).await.unwrap().cipher_suites;
            let shown = status.iter().map(|s| {
                let c = &s.counts;
                let suite = i32::from(c.cipher_suite.0);
                (
                    suite,
                    i64::from(c.available),
                    i64::from(c.reserved),
                    c.expired as i64,
                    c.spent as i64,
                )
            });
            let counted = rows.iter().map(|r| {
                (
                    r.get("cipher_suite"),
                    r.get("available"),
                    r.get("reserved"),
                    r.get("expired"),
                    r.get("spent"),
                )
            });
            assert_eq!(
                shown.collect::<Vec<_>>(),
                counted.collect::<Vec<(i32, i64, i64, i64, i64)>>()
            );
        }
        if in_order {
            self.check_events().await;
        }
    }

    /// Every package's events are a path through the state diagram, and the last one is where it
    /// stands.
    async fn check_events(&self) {
        let rows = sqlx::query(
            "SELECT e.pool_id, e.cipher_suite, e.seq, e.kind, e.generation,
                    CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                         WHEN k.seq IS NOT NULL AND k.state = 'reserved' THEN 'reserved'
                         WHEN k.seq IS NOT NULL THEN coalesce(k.returned, 'uploaded')
                         ELSE b.state END AS stands
             FROM event e
             LEFT JOIN package k USING (bucket, pool_id, cipher_suite, seq)
             LEFT JOIN tombstone b USING (bucket, pool_id, cipher_suite, seq)
             WHERE NOT (e.generation = 0 AND e.holder IS NOT NULL)
               AND NOT EXISTS (SELECT FROM last_resort l
                               WHERE (l.pool_id, l.cipher_suite, l.seq)
                                   = (e.pool_id, e.cipher_suite, e.seq))
             ORDER BY e.at, e.generation, e.xmin::text::bigint, e.ctid",
        )
        .fetch_all(&self.world.database.pool)
        .await
        .unwrap();
        let mut paths: BTreeMap<PackageKey, (Vec<String>, Option<String>)> = BTreeMap::new();
        let mut generations = HashSet::new();
        for row in rows {
            let key = (row.get("pool_id"), row.get("cipher_suite"), row.get("seq"));
            let kind: String = row.get("kind");
            if kind == "reserved" {
                assert!(generations.insert((key, row.get::<i32, _>("generation"))));
            }
            let path = paths.entry(key).or_default();
            path.0.push(kind);
            path.1 = row.get("stands");
        }
        for (key, (path, stands)) in paths {
            assert_eq!(path[0], "uploaded", "{key:?} {path:?}");
            for pair in path.windows(2) {
                let next: &[&str] = match pair[0].as_str() {
                    "uploaded" | "released" => &["reserved", "expired", "revoked"],
                    "reserved" => &["spent", "released", "lapsed", "burned", "expired", "revoked"],
                    "lapsed" => &["reserved", "spent", "expired", "revoked"],
                    "burned" => &["spent"],
                    "revoked" => &["spent", "released", "lapsed", "expired"],
                    _ => &[],
                };
                assert!(next.contains(&pair[1].as_str()), "{key:?} {path:?}");
            }
            // What is revoked is not issued again; its reservation may still end in its own way.
            let revoked = path.iter().position(|kind| kind == "revoked");
            let after = revoked.map_or(&[][..], |at| &path[at + 1..]);
            assert!(
                after.len() <= 1 && !after.contains(&"reserved".to_owned()),
                "{key:?} {path:?}"
            );
            match stands.as_deref() {
                Some("revoked") => assert!(revoked.is_some(), "{key:?} {path:?}"),
                Some(stands) => assert_eq!(path.last().unwrap(), stands, "{key:?} {path:?}"),
                None => {}
            }
        }
    }
}
