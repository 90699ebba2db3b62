-- name: archivable_sessions
-- Closed sessions in which nothing has happened since a moment ($1), oldest first, after a place ($2, $3). One that was
-- restored stays for as long again. One with a file that is still to be fetched comes later.
select s.conversation_id, s.id, s.created_at, s.last_activity, s.next_seq, s.parent_session_id, s.platform, s.account,
  s.platform_conversation_id, s.thread, s.user_id, s.mode, s.metadata, s.message_count
from sessions s
where s.status = 'closed' and (s.created_at, s.id) > ($2, $3::uuid) and s.created_at < $1
  and s.last_activity < $1 and s.message_count > 0 and s.pending_since is null
  and coalesce(
    s.metadata ->> 'restored_at' < to_char($1::timestamptz at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), true
  )
  and not exists (
    select from attachments a
    where a.conversation_id = s.conversation_id and a.status = 'waiting' and a.seq is not null
  )
  and not exists (select from holds h where h.conversation_id = s.conversation_id)
order by s.created_at, s.id
limit $4;

-- name: unfinished_sessions
-- Which of these sessions ($2) of a conversation have a dead letter, a part of a reply that is not sent, or a turn that
-- runs. $3: all their messages are before it.
select m.session_id
from messages m
where m.conversation_id = $1 and m.seq < $3 and m.session_id = any ($2::uuid[])
  and (
    m.status = 'failed' and not coalesce(m.metadata ?| '{purged,replayed_as}', false)
    or m.direction = 'outbound' and exists (
      select from deliveries d
      where d.conversation_id = m.conversation_id and d.seq = m.seq and d.status not in ('sent', 'purged')
    )
  )
union
select t.session_id
from turns t
where t.conversation_id = $1 and t.session_id = any ($2::uuid[]) and t.status = 'running';

-- name: messages_to_archive
-- A page of the messages of these sessions ($2) between two seqs. `version` changes with every change of a row.
select
  session_id, seq, created_at, sent_at, id, turn_id, direction, status, content_type, content_text, event_key, sender_id,
  platform_message_id, agent_request_id, attachments, metadata, xmin::text::bigint as version
from messages
where conversation_id = $1 and session_id = any ($2::uuid[]) and seq > $3 and seq < $4
order by seq
limit $5;

-- name: turns_to_archive
-- A page of the turns of these sessions ($2), after an id.
select
  session_id, id, first_seq, last_seq, started_at, finished_at, status, owner, agent, outcome, agent_request_id, error,
  usage
from turns
where conversation_id = $1 and session_id = any ($2::uuid[]) and id > $3
order by id
limit $4;

-- name: deliveries_to_archive
-- A page of the deliveries of these sessions ($2), after a place ($3, $4) and before a seq.
select
  m.session_id, d.seq, d.part, d.attempts, d.failures, d.sent_at, d.status, d.platform_message_id, d.error
from deliveries d
join messages m on m.conversation_id = d.conversation_id and m.seq = d.seq
where d.conversation_id = $1 and m.session_id = any ($2::uuid[]) and (d.seq, d.part) > ($3, $4::smallint) and d.seq < $5
order by d.seq, d.part
limit $6;

-- name: begin_archive
-- Note an object that will be written.
insert into archives (id) values ($1);

-- name: archive_written
-- An object is there and was read back. Not returned: it took so long that the archive was given up.
with archive as (
  update archives
  set status = 'partial', changed_at = clock_timestamp(), size = $2, sha256 = $3, sessions = $4, messages = $5
  where id = $1 and status = 'writing'
  returning id
), blocks as (
  insert into archive_blocks (archive_id, number, block_start, size, sha256)
  select a.id, b.number, b.block_start, b.size, b.sha256
  from archive a
  cross join unnest($6::integer[], $7::bigint[], $8::integer[], $9::bytea[]) as b (number, block_start, size, sha256)
)
select id from archive;

-- name: hold_archive
-- Nobody gives this archive up, or writes it anew, until the transaction ends. Not returned: somebody has.
select id from archives where id = $1 and status = 'partial' for share;

-- name: lock_archivable
-- Hold those of these sessions that can still be archived, in the order in which every statement locks.
select s.conversation_id, s.id, s.next_seq
from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, id)
join sessions s on s.conversation_id = i.conversation_id and s.id = i.id
where s.status = 'closed' and not exists (select from holds h where h.conversation_id = s.conversation_id)
order by s.conversation_id, s.id
for update of s;

-- name: add_archived
-- Note which block of an archive ($1) has which messages of a session.
insert into archived_sessions (archive_id, conversation_id, session_id, block, first_seq, last_seq, messages)
select $1, i.*
from unnest($2::uuid[], $3::uuid[], $4::integer[], $5::bigint[], $6::bigint[], $7::integer[]) as i;

-- name: remove_archived_messages
-- Remove messages that an archive has, session by session between two seqs, with their deliveries. How many of each session
-- those were, and the sum of version times seq: another sum, and they are not as they were when they were copied.
with gone as (
  delete from messages m
  using unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[]) as i (conversation_id, session_id, first_seq, last_seq)
  where m.conversation_id = i.conversation_id and m.session_id = i.session_id and m.seq between i.first_seq and i.last_seq
  returning m.conversation_id, m.session_id, m.seq, m.xmin::text::numeric as version
), sent as (
  delete from deliveries d
  using gone g
  where d.conversation_id = g.conversation_id and d.seq = g.seq
)
select session_id, count(*) as messages, sum(version * seq) as versions from gone group by session_id;

-- name: remove_archived_turns
-- Remove turns that an archive has, by the lowest and the highest id of a session.
delete from turns t
using unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[]) as i (conversation_id, session_id, first_id, last_id)
where t.conversation_id = i.conversation_id and t.session_id = i.session_id and t.id between i.first_id and i.last_id;

-- name: sessions_archived
-- These sessions are in an archive now.
update sessions s
set status = 'archived', metadata = s.metadata - 'restored_at'
from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, id)
where s.conversation_id = i.conversation_id and s.id = i.id;

-- name: archive_filled
-- All sessions of an object are archived.
update archives set status = 'stored', changed_at = clock_timestamp() where id = $1 and status = 'partial' returning id;

-- name: unsettled_archives
-- Archives with something to be done, after a place ($1, $2): those that have been in the writing for so long ($3), or
-- are to be written anew, or have been given up so long ago ($4) that nobody reads them any more.
select id, created_at, status
from archives
where status <> 'stored' and (created_at, id) > ($1, $2::uuid)
  and case status
    when 'writing' then changed_at < clock_timestamp() - $3::interval
    when 'deleting' then changed_at < clock_timestamp() - $4::interval
    else true
  end
order by created_at, id
limit $5;

-- name: list_archives
-- Archives, oldest first, or one ($1), and what sessions still have of them.
select a.id, a.created_at, a.changed_at, a.size, a.messages, a.sessions, a.status, a.sha256,
  coalesce(l.sessions, 0) as sessions_left, coalesce(l.messages, 0) as messages_left
from archives a
left join lateral (
  select count(distinct (p.conversation_id, p.session_id)) as sessions, sum(p.messages)::bigint as messages
  from archived_sessions p
  where p.archive_id = a.id
) l on true
where $1::uuid is null or a.id = $1
order by a.created_at, a.id;

-- name: lock_archive
-- Hold an archive that was not given up.
select id from archives where id = $1 and status in ('writing', 'partial', 'stored') for update;

-- name: doom_archive
-- Nothing names an archive any more: its object will go. Not returned: something does, or it is being written.
update archives a
set status = 'deleting', changed_at = clock_timestamp()
where a.id = $1 and a.status in ('partial', 'writing')
  and not exists (select from archived_sessions p where p.archive_id = a.id)
returning a.id;

-- name: archive_deleted
-- The object of an archive is gone.
with blocks as (
  delete from archive_blocks b
  using archives a
  where b.archive_id = $1 and a.id = b.archive_id and a.status = 'deleting'
)
delete from archives where id = $1 and status = 'deleting' returning id;

-- name: blocks_of_archive
-- The blocks of an archive, in their order.
select number, block_start, size, sha256 from archive_blocks where archive_id = $1 order by number;

-- name: sessions_of_archive
-- What sessions have of an archive.
select conversation_id, session_id, block, first_seq, last_seq, messages
from archived_sessions
where archive_id = $1
order by conversation_id, session_id, block;

-- name: forget_sessions_of_archive
-- Another archive has them.
delete from archived_sessions where archive_id = $1;

-- name: archived_between
-- Which blocks have messages of a conversation, or ($2) of one session of it, between two seqs.
select p.archive_id, p.session_id, p.first_seq, p.last_seq, b.number, b.block_start, b.size, b.sha256
from archived_sessions p
join archive_blocks b on b.archive_id = p.archive_id and b.number = p.block
where p.conversation_id = $1 and ($2::uuid is null or p.session_id = $2) and p.last_seq > $3 and p.first_seq < $4;

-- name: lock_archived
-- Hold an archived session.
select conversation_id, id, platform_conversation_id from sessions where id = $1 and status = 'archived' for update;

-- name: blocks_of_session
-- The blocks that have something of an archived session.
select distinct p.archive_id, b.number, b.block_start, b.size, b.sha256
from archived_sessions p
join archive_blocks b on b.archive_id = p.archive_id and b.number = p.block
where p.conversation_id = $1 and p.session_id = $2
order by b.number;

-- name: known_keys
-- Which of these event keys a conversation has.
select event_key from messages where conversation_id = $1 and event_key = any ($2::text[]);

-- name: forget_archived
-- These sessions ($2) are not in archives any more: the objects they were in will be written anew without them.
with gone as (
  delete from archived_sessions
  where conversation_id = $1 and session_id = any ($2::uuid[])
  returning archive_id
)
update archives a
set status = 'partial', changed_at = clock_timestamp()
from (select distinct archive_id from gone) g
where a.id = g.archive_id and a.status in ('partial', 'stored');

-- name: session_restored
-- A session has its rows again.
update sessions
set status = 'closed',
  metadata = metadata || jsonb_build_object(
    'restored_at', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  )
where conversation_id = $1 and id = $2;

-- name: names_of
-- What these people of an account are called.
select platform_user_id, display_name
from users
where platform = $1 and account = $2 and platform_user_id = any ($3::text[]);
