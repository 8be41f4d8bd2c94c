//! Rows into domain types. A row that cannot be is an error, never a default.

use crate::domain::{
    error::Error,
    ids::{CipherSuite, ClientId, ClientKey, UserId},
    reservation_id::{Locator, SuiteKey},
};

/// A row that the schema and the statements rule out.
pub(super) fn impossible(what: &'static str) -> Error {
    Error::Internal(anyhow::anyhow!("the database holds or answered {what}"))
}

pub(super) fn client_key(user: String, client: String) -> Result<ClientKey, Error> {
    let invalid = |_| impossible("an id that is not one");
    let user = UserId::parse(user).map_err(invalid)?;
    Ok(ClientKey { user, client: ClientId::parse(client).map_err(invalid)? })
}

pub(super) fn cipher_suite(number: i32) -> Result<CipherSuite, Error> {
    u16::try_from(number)
        .map(CipherSuite)
        .map_err(|_| impossible("a cipher suite that is not a uint16"))
}

pub(super) fn count<T: TryFrom<i64>>(number: i64) -> Result<T, Error> {
    T::try_from(number).map_err(|_| impossible("a count that is out of range"))
}

/// A limit as a statement takes it.
pub(super) fn bounded(limit: u32) -> i32 {
    i32::try_from(limit).unwrap_or(i32::MAX)
}

/// The primary keys of rows as a statement takes them: one array for each column.
#[derive(Debug, Default)]
pub(super) struct KeyColumns {
    pub(super) ord: Vec<i32>,
    pub(super) bucket: Vec<i16>,
    pub(super) pool_id: Vec<i64>,
    pub(super) cipher_suite: Vec<i32>,
    pub(super) seq: Vec<i64>,
    pub(super) generation: Vec<i32>,
}

impl<'a> Extend<(i32, &'a Locator)> for KeyColumns {
    fn extend<I: IntoIterator<Item = (i32, &'a Locator)>>(&mut self, locators: I) {
        for (ord, Locator { suite, seq, generation }) in locators {
            let SuiteKey { bucket, pool_id, cipher_suite } = suite;
            self.ord.push(ord);
            self.bucket.push(bucket.get());
            self.pool_id.push(*pool_id);
            self.cipher_suite.push(i32::from(cipher_suite.0));
            self.seq.push(*seq);
            self.generation.push(*generation);
        }
    }
}

impl<'a> FromIterator<(i32, &'a Locator)> for KeyColumns {
    fn from_iter<I: IntoIterator<Item = (i32, &'a Locator)>>(locators: I) -> Self {
        let mut columns = Self::default();
        columns.extend(locators);
        columns
    }
}
