//! Whether the model can have answered so.

use std::collections::{BTreeSet, HashMap};

use keypool_model::{Id, Item, Pool, Reserved, Rules, State, Unavailable};

use super::calls::{Answer, Asked, Call, Got};

/// The model of both pools, and by which names keypool knows what is in them.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) pools: [Pool; 2],
    /// By ref: whose, and which.
    pub(super) places: HashMap<Vec<u8>, (usize, Item)>,
    /// By reservation id: whose, and which.
    ids: HashMap<String, (usize, Id)>,
}

/// The model after these calls, in an order in which it gives these answers and comes to be what
/// `fits`. A Reserve beside others passes over what they look at, so it may get any package that
/// could be issued; one that is alone gets the first. An Upload beside others passes over what they
/// look at, too, when it ends what has expired: the sweeper finds that.
pub(super) fn explain(
    rules: &Rules,
    before: &Known,
    calls: &[Call],
    answers: &[Answer],
    fits: impl Fn(&Known) -> bool,
) -> Result<Known, String> {
    let mut search = Search { rules, calls, answers, fits, answered: None };
    let all: Vec<usize> = (0..calls.len()).collect();
    search.from(before, &all).ok_or_else(|| match search.answered {
        Some(known) => format!("the answers are the model's, the rows are not: {:#?}", known.pools),
        None => format!("the model answers otherwise: {:#?}", before.pools),
    })
}

struct Search<'a, F> {
    rules: &'a Rules,
    calls: &'a [Call],
    answers: &'a [Answer],
    fits: F,
    /// A model that gave these answers, but has other rows.
    answered: Option<Known>,
}

impl<F: Fn(&Known) -> bool> Search<'_, F> {
    fn from(&mut self, known: &Known, left: &[usize]) -> Option<Known> {
        if left.is_empty() {
            if (self.fits)(known) {
                return Some(known.clone());
            }
            self.answered = Some(known.clone());
        }
        left.iter().find_map(|&next| {
            let rest: Vec<usize> = left.iter().copied().filter(|&at| at != next).collect();
            self.kept(known, next).iter().find_map(|kept| {
                let mut known = known.clone();
                let alone = self.calls.len() == 1;
                let expired: Vec<(usize, usize, State)> = kept
                    .iter()
                    .map(|&(of, at)| (of, at, known.pools[of].packages[at].state.clone()))
                    .collect();
                if !known.answers(self.rules, &self.calls[next], &self.answers[next], alone) {
                    return None;
                }
                for (owner, at, state) in expired {
                    known.pools[owner].packages[at].state = state;
                }
                self.from(&known, &rest)
            })
        })
    }

    /// Which expired packages this call may leave as they are: for an Upload, any of those that
    /// other calls settle at the same time.
    fn kept(&self, known: &Known, next: usize) -> Vec<Vec<(usize, usize)>> {
        let mut choices = vec![Vec::new()];
        let Call::Upload { owner, .. } = &self.calls[next] else { return choices };
        let settled: BTreeSet<(usize, Id)> = self
            .calls
            .iter()
            .flat_map(|call| match call {
                Call::Spend { ids, .. } | Call::Release { ids, .. } => ids.as_slice(),
                _ => &[],
            })
            .filter_map(|id| known.ids.get(id).copied())
            .collect();
        for (of, id) in settled {
            let Id::Package(at, _) = id else { continue };
            let pool = &known.pools[of];
            let package = &pool.packages[at];
            if of == *owner && package.not_after <= pool.now && package.state != State::Expired {
                let with: Vec<_> =
                    choices.iter().map(|kept| [&kept[..], &[(of, at)]].concat()).collect();
                choices.extend(with);
            }
        }
        choices
    }
}

impl Known {
    /// Makes a call on the model; whether that is what it answers.
    fn answers(&mut self, rules: &Rules, call: &Call, answer: &Answer, alone: bool) -> bool {
        match (call, answer) {
            (Call::Upload { owner, packages }, Answer::Upload(results)) => {
                packages.iter().zip(results).all(|((_, new), (key_package_ref, result))| {
                    let pool = &mut self.pools[*owner];
                    let uploaded = match self.places.get(key_package_ref) {
                        Some((_, item)) => pool.upload_again(rules, *item),
                        None if new.last_resort => {
                            pool.upload_last_resort(new.suite, pool.now + new.lifetime)
                        }
                        None => pool.upload(rules, new.suite, pool.now + new.lifetime),
                    };
                    if let Ok(uploaded) = uploaded {
                        let place = (*owner, uploaded.item);
                        self.places.insert(key_package_ref.clone(), place);
                    }
                    uploaded.map(|uploaded| uploaded.already) == *result
                })
            }
            (Call::Reserve { asked, .. }, Answer::Reserve(answer)) => {
                self.reserves(rules, asked, answer, alone)
            }
            (Call::Spend { ids, group, .. }, Answer::Settle(answer)) => {
                self.settles(ids, answer, |pool, id| pool.spend(rules, id, *group))
            }
            (Call::Release { ids, .. }, Answer::Settle(answer)) => {
                self.settles(ids, answer, |pool, id| pool.release(rules, id))
            }
            (Call::Revoke { owner, refs }, Answer::Revoke(answer)) => {
                let items = refs.as_ref().map(|refs| {
                    let items = refs.iter().filter_map(|found| self.places.get(found));
                    items.map(|(_, item)| *item).collect::<BTreeSet<Item>>()
                });
                self.pools[*owner].revoke(rules, items.as_ref()) == *answer
            }
            _ => false,
        }
    }

    fn reserves(
        &mut self,
        rules: &Rules,
        asked: &Asked,
        answer: &Result<Vec<Result<Got, Unavailable>>, Unavailable>,
        alone: bool,
    ) -> bool {
        let before = self.pools.clone();
        let told = |n: usize| answer.as_ref().ok().and_then(|all| all.get(n)?.as_ref().ok());
        let mut outcomes: Vec<Result<Reserved, Unavailable>> = Vec::new();
        for (n, (owner, ask)) in asked.asks.iter().enumerate() {
            let this = told(n).filter(|_| !alone).and_then(|got| {
                match self.places.get(&got.key_package_ref)? {
                    (_, Item::Package(at)) => Some(*at),
                    (_, Item::LastResort(_)) => None,
                }
            });
            outcomes.push(self.pools[*owner].reserve_any(rules, ask, this));
        }
        let reused = outcomes.contains(&Err(Unavailable::RequestIdReused));
        let first = outcomes.iter().find_map(|outcome| outcome.err());
        let first = if reused { Some(Unavailable::RequestIdReused) } else { first };
        let whole = reused || asked.all_or_nothing || outcomes.len() == 1;
        if let Some(why) = first.filter(|_| whole) {
            self.pools = before;
            return *answer == Err(why);
        }
        let Ok(answer) = answer else { return false };
        let pairs = asked.asks.iter().zip(&outcomes).zip(answer);
        answer.len() == outcomes.len()
            && pairs.into_iter().all(|(((owner, _), outcome), answer)| match (outcome, answer) {
                (Ok(reserved), Ok(got)) => self.same(*owner, reserved, got),
                (Err(one), Err(other)) => one == other,
                _ => false,
            })
    }

    /// Whether it is the same reservation; from now on it has this name.
    fn same(&mut self, owner: usize, reserved: &Reserved, got: &Got) -> bool {
        let item = match reserved.id {
            Id::Package(at, _) => Item::Package(at),
            Id::Grant(at) => Item::LastResort(self.pools[owner].grants[at].last_resort),
        };
        let name = (owner, reserved.id);
        let named = *self.ids.entry(got.id.clone()).or_insert(name) == name;
        let names = self.ids.values().filter(|other| **other == name).count();
        let place = self.places.get(&got.key_package_ref);
        named
            && names == 1
            && place == Some(&(owner, item))
            && got.expires_at == reserved.expires_at
            && got.last_resort == matches!(reserved.id, Id::Grant(_))
    }

    fn settles<E: PartialEq>(
        &mut self,
        ids: &[String],
        answer: &Result<Vec<bool>, E>,
        settle: impl Fn(&mut Pool, Id) -> Result<keypool_model::Settled, E>,
    ) -> bool {
        let before = self.pools.clone();
        let settled: Result<Vec<bool>, E> = ids
            .iter()
            .map(|id| {
                let (owner, id) = self.ids[id];
                settle(&mut self.pools[owner], id).map(|settled| settled.already)
            })
            .collect();
        if settled.is_err() {
            self.pools = before;
        }
        settled == *answer
    }
}
