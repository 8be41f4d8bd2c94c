//! What a user does in a group: each function is part of one transaction.

use anyhow::{Context as _, Result};
use keypool_client::{
    CommitOutcome, Invitation,
    openmls::prelude::{tls_codec::DeserializeBytes as _, *},
};

use crate::{
    SUITE,
    delivery::{Entry, Welcome},
    store::{Me, Outgoing, Unit},
};

/// What an entry of a group's log did here.
#[derive(Default)]
pub(crate) struct Happened {
    /// To be shown.
    pub(crate) line: Option<String>,
    /// A Welcome was for this user.
    pub(crate) joined: bool,
    /// What became of a Commit of this user.
    pub(crate) commit: Option<CommitOutcome>,
}

pub(crate) fn load(unit: &Unit<'_>, name: &str) -> Result<Option<MlsGroup>> {
    Ok(MlsGroup::load(unit.provider.storage(), &GroupId::from_slice(name.as_bytes()))?)
}

fn mine(unit: &Unit<'_>, name: &str) -> Result<MlsGroup> {
    load(unit, name)?.context("no such group of yours")
}

pub(crate) fn create(unit: &Unit<'_>, me: &Me, name: &str) -> Result<()> {
    let config =
        MlsGroupCreateConfig::builder().ciphersuite(SUITE).use_ratchet_tree_extension(true).build();
    let id = GroupId::from_slice(name.as_bytes());
    let credential = me.credential.clone();
    MlsGroup::new_with_group_id(&unit.provider, &me.signer, &config, id, credential)?;
    unit.set_position(name, 0)
}

/// Makes a Commit that adds those who are invited. It is pending until it stands in the log.
pub(crate) fn add(unit: &Unit<'_>, me: &Me, name: &str, invitation: &mut Invitation) -> Result<()> {
    let mut group = mine(unit, name)?;
    let messages = invitation.add_to(&mut group, &unit.provider, &me.signer)?;
    let to = invitation.invitees().iter().map(|it| it.user_id.clone()).collect();
    let welcome = Welcome { to, message: messages.welcome.to_bytes()? };
    let entry = Entry { message: messages.commit.to_bytes()?, welcome: Some(welcome) };
    unit.set_outgoing(name, &Outgoing { entry, text: None })
}

/// Encrypts a text, to be sent.
pub(crate) fn send(unit: &Unit<'_>, me: &Me, name: &str, text: String) -> Result<()> {
    let mut group = mine(unit, name)?;
    let message = group.create_message(&unit.provider, &me.signer, text.as_bytes())?;
    let entry = Entry { message: message.to_bytes()?, welcome: None };
    unit.set_outgoing(name, &Outgoing { entry, text: Some(text) })
}

/// What this user wanted to send stands in the log now.
pub(crate) fn sent(unit: &Unit<'_>, me: &Me, name: &str, outgoing: &Outgoing) -> Result<Happened> {
    unit.set_position(name, unit.position(name)? + 1)?;
    unit.remove_outgoing(name)?;
    if let Some(text) = &outgoing.text {
        let line = unit.say(name, &format!("{}: {text}", me.user))?;
        return Ok(Happened { line: Some(line), ..Happened::default() });
    }
    mine(unit, name)?.merge_pending_commit(&unit.provider)?;
    let to = outgoing.entry.welcome.as_ref().map(|welcome| welcome.to.join(", "));
    let line = unit.say(name, &format!("{} added {}", me.user, to.unwrap_or_default()))?;
    let commit = Some(CommitOutcome::Accepted);
    Ok(Happened { line: Some(line), commit, ..Happened::default() })
}

/// Another one's entry stands where this user's was to be.
pub(crate) fn overtaken(
    unit: &Unit<'_>,
    me: &Me,
    name: &str,
    (outgoing, entry): (Outgoing, &Entry),
) -> Result<Happened> {
    let epoch = mine(unit, name)?.epoch();
    let mut happened = receive(unit, me, name, entry)?;
    if let Some(text) = outgoing.text {
        send(unit, me, name, text)?; // for those who are in the group now
    } else if mine(unit, name)?.epoch() != epoch {
        unit.remove_outgoing(name)?;
        happened.commit = Some(CommitOutcome::Rejected);
    }
    Ok(happened)
}

/// Processes the next entry of a log.
pub(crate) fn receive(unit: &Unit<'_>, me: &Me, name: &str, entry: &Entry) -> Result<Happened> {
    unit.set_position(name, unit.position(name)? + 1)?;
    let Some(mut group) = load(unit, name)? else {
        return match &entry.welcome {
            Some(welcome) if welcome.to.contains(&me.user) => join(unit, name, welcome),
            _ => Ok(Happened::default()), // others' group
        };
    };
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&entry.message)?;
    let message = message.try_into_protocol_message()?;
    let processed = group.process_message(&unit.provider, message)?;
    let sender = user(processed.credential());
    let line = match processed.into_content() {
        ProcessedMessageContent::ApplicationMessage(text) => {
            format!("{sender}: {}", String::from_utf8_lossy(&text.into_bytes()))
        }
        ProcessedMessageContent::StagedCommitMessage(commit) => {
            let added = commit
                .add_proposals()
                .map(|add| user(add.add_proposal().key_package().leaf_node().credential()));
            let added = added.collect::<Vec<_>>().join(", ");
            // A Commit of this user's came second.
            group.clear_pending_commit(unit.provider.storage())?;
            group.merge_staged_commit(&unit.provider, *commit)?;
            format!("{sender} added {added}")
        }
        _ => format!("{sender} sent what this chat does not know"),
    };
    Ok(Happened { line: Some(unit.say(name, &line)?), ..Happened::default() })
}

/// Joins the group that a Welcome invites to. OpenMLS deletes the private keys of the KeyPackage
/// as it reads the Welcome, and stores the group. Both are in this transaction, and so is the
/// position in the log: a crash loses neither, and leaves nothing to be done twice. That the
/// package is gone is for the pool to see, now or when the process starts again.
fn join(unit: &Unit<'_>, name: &str, welcome: &Welcome) -> Result<Happened> {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&welcome.message)?;
    let MlsMessageBodyIn::Welcome(welcome) = message.extract() else {
        anyhow::bail!("a Welcome that is none");
    };
    let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
    let staged = StagedWelcome::new_from_welcome(&unit.provider, &config, welcome, None)?;
    let group = staged.into_group(&unit.provider)?;
    let line = unit.say(name, &format!("you joined; members: {}", members(&group)))?;
    Ok(Happened { line: Some(line), joined: true, commit: None })
}

pub(crate) fn members(group: &MlsGroup) -> String {
    group.members().map(|member| user(&member.credential)).collect::<Vec<_>>().join(", ")
}

fn user(credential: &Credential) -> String {
    let basic = BasicCredential::try_from(credential.clone());
    basic.map_or("?".into(), |basic| String::from_utf8_lossy(basic.identity()).into_owned())
}
