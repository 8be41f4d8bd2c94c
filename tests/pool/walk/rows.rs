//! What stands in the tables, and what should by the model.

use std::collections::{BTreeMap, BTreeSet};

use keypool_model::{GrantState, Holder, Item, State};
use keypool_testing::forge::NOW;
use sqlx::Row as _;

use super::{Walk, explain::Known};

/// By ref: what a table says of a package, and how many grants there are of each state.
pub(super) type Rows = BTreeMap<Vec<u8>, BTreeSet<String>>;

impl Walk {
    /// What stands in the tables.
    pub(super) async fn rows(&self) -> Rows {
        let found = sqlx::query(
            "SELECT key_package_ref, holder,
                    CASE WHEN state = 'reserved' THEN
                              concat('reserved ', generation, ' until ',
                                     extract(epoch FROM expires_at)::bigint - $1,
                                     CASE WHEN revoked_at IS NOT NULL THEN ' revoked' END,
                                     ' group ', get_byte(group_id, 0))
                         WHEN returned = 'lapsed' THEN
                              concat('lapsed ', generation, ' group ', get_byte(group_id, 0))
                         ELSE concat('available ', generation) END AS stands
             FROM package
             UNION ALL
             SELECT key_package_ref, CASE WHEN state <> 'revoked' THEN holder END,
                    concat(state, ' ', generation,
                           CASE WHEN state <> 'revoked' THEN
                                concat(' group ', get_byte(group_id, 0)) END)
             FROM tombstone
             UNION ALL
             SELECT key_package_ref, NULL, 'last resort' FROM last_resort
             UNION ALL
             SELECT key_package_ref, NULL, concat(count(*), ' grants ', state)
             FROM last_resort_grant GROUP BY key_package_ref, state",
        )
        .bind(i64::try_from(NOW).unwrap())
        .fetch_all(&self.world.database.pool)
        .await
        .unwrap();
        let mut rows = Rows::new();
        for row in found {
            let holder: Option<Vec<u8>> = row.get("holder");
            let holder = holder.map(|digest| {
                self.adders.iter().position(|adder| adder.digest().0[..] == digest).unwrap()
            });
            let mut stands: String = row.get("stands");
            if let Some(holder) = holder {
                stands += &format!(" of {holder}");
            }
            rows.entry(row.get("key_package_ref")).or_default().insert(stands);
        }
        rows
    }

    /// What should stand there.
    pub(super) fn rows_of(&self, known: &Known) -> Rows {
        let mut rows = Rows::new();
        for (key_package_ref, (owner, item)) in &known.places {
            let pool = &known.pools[*owner];
            let stands = match item {
                Item::Package(at) => package(&pool.packages[*at]).into_iter().collect(),
                Item::LastResort(at) => {
                    let mut stands = BTreeSet::new();
                    stands.extend(pool.last_resorts[*at].live.then(|| "last resort".to_owned()));
                    let names = [
                        (GrantState::Reserved, "reserved"),
                        (GrantState::Spent, "spent"),
                        (GrantState::Released, "released"),
                    ];
                    for (state, name) in names {
                        let grants = pool.grants.iter();
                        let grants = grants.filter(|g| g.last_resort == *at && g.state == state);
                        let count = grants.count();
                        stands.extend((count > 0).then(|| format!("{count} grants {name}")));
                    }
                    stands
                }
            };
            if !stands.is_empty() {
                rows.insert(key_package_ref.clone(), stands);
            }
        }
        rows
    }
}

fn package(package: &keypool_model::Package) -> Option<String> {
    let generation = package.generation;
    let whose = |holder: Holder| format!("group {} of {}", holder.group, holder.adder);
    Some(match package.state {
        State::Available => format!("available {generation}"),
        State::Lapsed(holder) => format!("lapsed {generation} {}", whose(holder)),
        State::Reserved { by, revoked } => {
            let revoked = if revoked { " revoked" } else { "" };
            let until = by.expires_at;
            format!("reserved {generation} until {until}{revoked} {}", whose(by.holder))
        }
        State::Spent(holder) => format!("spent {generation} {}", whose(holder)),
        State::Burned(holder) => format!("burned {generation} {}", whose(holder)),
        State::Revoked => format!("revoked {generation}"),
        State::Expired | State::Forgotten => return None,
    })
}
