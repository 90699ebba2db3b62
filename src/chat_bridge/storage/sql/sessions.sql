-- name: rotate
-- Close a session and open its successor. What arrived meanwhile moves along. Run in the transaction of `complete`,
-- which holds the session. A session that is closed already stays as it is.
with before as (
  select pending_since, last_inbound_seq from sessions where conversation_id = $1 and id = $2 and status = 'active'
), moved as (
  update messages m
  set session_id = $4
  from before
  where m.conversation_id = $1 and m.session_id = $2 and m.seq > $3 and m.direction = 'inbound'
  returning m.seq
), old as (
  update sessions
  set status = 'closed', pending_since = null, last_inbound_seq = least(last_inbound_seq, $3),
    message_count = message_count - (select count(*) from moved)
  where conversation_id = $1 and id = $2 and status = 'active'
  returning *
), wait as (
  insert into waiting (conversation_id, session_id)
  select o.conversation_id, $4 from old o, before b where b.pending_since is not null
  on conflict do nothing
), settled as (
  delete from waiting where conversation_id = $1 and session_id = $2
)
insert into sessions (
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, mode, parent_session_id,
  next_seq, answered_seq, last_inbound_seq, pending_since, error_told_at, message_count, metadata
)
select
  o.conversation_id, $4, o.platform, o.account, o.platform_conversation_id, o.thread, o.user_id, o.mode, o.id,
  o.next_seq, $3, b.last_inbound_seq, b.pending_since, o.error_told_at, (select count(*) from moved),
  o.metadata - '{approval,follows,summary}'::text[]
from old o, before b
returning id;

-- name: rotate_ended
-- Close the active sessions of these conversations in which nothing happened since a moment, and open the successors
-- ($2, an id for each), where one of the messages that come ($4, their keys) is new. A session in which something waits or
-- is being answered goes on. The successor knows what it follows, for a summary, if anything was said there; an agent that
-- waits for an approval can't be asked for one.
with given as (
  select * from unnest($1::uuid[], $2::uuid[]) as g (conversation_id, successor)
), held as materialized (
  select s.conversation_id, s.id, g.successor
  from given g
  join sessions s on s.conversation_id = g.conversation_id and s.status = 'active'
  where s.last_activity < $3 and s.pending_since is null and exists (
    select
    from unnest($4::uuid[], $5::text[]) k (conversation_id, event_key)
    where k.conversation_id = g.conversation_id and not exists (
      select from messages m where m.conversation_id = k.conversation_id and m.event_key = k.event_key
    )
  )
  order by s.conversation_id
  for update of s
), old as (
  update sessions s
  set status = 'closed'
  from held h
  where s.conversation_id = h.conversation_id and s.id = h.id
  returning s.*, h.successor
)
insert into sessions (
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, mode, parent_session_id,
  next_seq, answered_seq, last_inbound_seq, error_told_at, metadata
)
select
  conversation_id, successor, platform, account, platform_conversation_id, thread, user_id, mode, id,
  next_seq, answered_seq, last_inbound_seq, error_told_at,
  metadata - '{approval,follows,summary}'::text[] || case
    when message_count > 0 and metadata ->> 'approval' is null then jsonb_build_object('follows', id)
    else '{}'
  end
from old;

-- name: lock_session
-- Hold an active session: nothing is received in it until the transaction ends.
select id, conversation_id from sessions where id = $1 and status = 'active' for update;

-- name: close_session
-- Close a session for good; the next message opens another. What waits in it, and a turn that runs, is cancelled: a
-- closed session never has either, so that seq is always given out by the active one. Run after `lock_session`.
with held as materialized (
  select s.conversation_id, s.id, s.answered_seq, s.last_inbound_seq
  from sessions s
  where s.id = $1 and s.status = 'active'
  for update
), turn as (
  update turns t
  set status = 'cancelled', outcome = 'cancelled', error = 'the session was closed', finished_at = clock_timestamp()
  from held h
  where t.conversation_id = h.conversation_id and t.status = 'running'
), unanswered as (
  update messages m
  set status = 'cancelled', metadata = coalesce(m.metadata, '{}') || '{"reason": "closed"}'
  from held h
  where m.conversation_id = h.conversation_id and m.seq > h.answered_seq and m.session_id = h.id
    and m.direction = 'inbound' and m.status = 'accepted'
), settled as (
  delete from waiting w
  using held h
  where w.conversation_id = h.conversation_id and w.session_id = h.id
)
update sessions s
set status = 'closed', pending_since = null, answered_seq = greatest(s.answered_seq, s.last_inbound_seq)
from held h
where s.conversation_id = h.conversation_id and s.id = h.id
returning s.conversation_id;

-- name: get_session
-- One session, by its id alone.
select
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, status, mode, created_at,
  last_activity, parent_session_id, message_count, answered_seq, last_inbound_seq, pending_since, metadata
from sessions
where id = $1;

-- name: session_of_conversation
-- The active session of a conversation.
select
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, status, mode, created_at,
  last_activity, parent_session_id, message_count, answered_seq, last_inbound_seq, pending_since, metadata
from sessions
where conversation_id = $1 and status = 'active';

-- name: active_session
-- For /status: the active session of a conversation.
select id, created_at, message_count from sessions where conversation_id = $1 and status = 'active';

-- name: active_in
-- The active sessions of a chat, in all its threads.
select id, conversation_id
from sessions
where platform = $1 and platform_conversation_id = $2 and account = $3 and status = 'active';

-- name: server
-- What PostgreSQL says of itself.
select current_setting('server_version_num')::integer as version, clock_timestamp() as now;

-- name: schema_revision
-- The schema's revision, as Alembic keeps it.
select version_num from alembic_version;

-- name: oldest_code
-- The oldest code that can use the schema. Asked only of a schema newer than this program: older ones lack the table.
select oldest_code from schema_compatibility;

-- name: plan_by_arguments
-- For the rest of the transaction, plan each statement for its arguments.
select set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: list_sessions
-- A page of sessions, newest first; every filter may be null.
select
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, status, mode, created_at,
  last_activity, parent_session_id, message_count, answered_seq, last_inbound_seq, pending_since, metadata
from sessions
where ($1::uuid is null or id < $1)
  and ($2::text is null or platform = $2)
  and ($3::text is null or platform_conversation_id = $3)
  and ($4::uuid is null or conversation_id = $4)
  and ($5::text is null or user_id = $5)
  and ($6::text is null or status = $6)
  and ($7::timestamptz is null or last_activity >= $7)
order by id desc
limit $8;

-- name: say
-- Store a notice of the bridge outside of any turn, in the active session ($2 is the message's own, which may be closed
-- by now: then nothing is said), with its outbox rows; at most one a minute. Run after `lock_session`, so that it sees
-- the reply that was stored just before.
with session as (
  update sessions s
  set next_seq = s.next_seq + 1, message_count = s.message_count + 1, error_told_at = clock_timestamp()
  where s.conversation_id = $1 and s.id = $2 and s.status = 'active'
    and coalesce(s.error_told_at < clock_timestamp() - interval '1 minute', true)
  returning s.conversation_id, s.id, s.next_seq - 1 as seq
), notice as (
  insert into messages (
    conversation_id, seq, id, session_id, direction, status, content_type, content_text, metadata
  )
  select conversation_id, seq, $3, id, 'outbound', 'stored', 'notice', $4, $5::jsonb
  from session
), outbox as (
  insert into deliveries (conversation_id, seq, part, idempotency_key, status, attempts, next_attempt_at)
  select
    s.conversation_id, s.seq, part, md5($3::uuid || ':' || part)::uuid,
    case when now then 'sending' else 'pending' end, now::integer,
    clock_timestamp() + case when now then interval '30 seconds' else interval '5 seconds' end
  from session s
  left join lateral (
    select d.status
    from deliveries d
    where d.conversation_id = s.conversation_id
    order by d.seq desc, d.part desc
    limit 1
  ) before on true
  cross join generate_series(1, $6::integer) part
  cross join lateral (select part = 1 and coalesce(before.status not in ('pending', 'sending'), true) as now) first
  returning idempotency_key, attempts
)
select s.seq, (select o.idempotency_key from outbox o where o.attempts = 1) as send_key
from session s;

-- name: set_session_metadata
-- Merge into a session's metadata; a null value stays as null.
update sessions
set metadata = metadata || $2::jsonb
where id = $1
returning id;

-- name: lock_conversations
-- Hold all sessions of these conversations, in the order in which every statement locks.
select conversation_id, id, status
from sessions
where conversation_id = any ($1::uuid[])
order by conversation_id, id
for update;

-- name: move_sessions
-- The platform gave a conversation a new id: its sessions live there now. What the agent remembers stays the old owner's.
update sessions
set conversation_id = $2, platform_conversation_id = $3,
  metadata = jsonb_build_object('resource', platform || ':' || account || ':' || platform_conversation_id) || metadata
    - 'preview'
where conversation_id = $1;

-- name: move_messages
-- With their seq: nothing else has any under the new id. The platform's ids of messages mean others there.
update messages
set conversation_id = $2, platform_message_id = null,
  metadata = case when direction = 'outbound' then metadata - 'reply_to' else metadata end
where conversation_id = $1;

-- name: move_turns
-- A turn that runs is taken away: its worker knows the old id only.
update turns
set conversation_id = $2,
  status = case when status = 'running' then 'superseded' else status end,
  outcome = case when status = 'running' then 'superseded' else outcome end,
  error = case when status = 'running' then 'the conversation moved' else error end,
  finished_at = coalesce(finished_at, clock_timestamp())
where conversation_id = $1;

-- name: move_deliveries
-- What is not sent yet goes to the new id; a sender that has one now can't record what came of it. Locked in the order in
-- which senders take them.
with held as materialized (
  select d.seq, d.part from deliveries d where d.conversation_id = $1 order by d.seq, d.part for update
)
update deliveries d
set conversation_id = $2,
  platform_message_id = case when d.status in ('pending', 'sending') then null else d.platform_message_id end
from held h
where d.conversation_id = $1 and d.seq = h.seq and d.part = h.part;

-- name: move_attachments
-- The platform's references to files stay good.
update attachments set conversation_id = $2 where conversation_id = $1;

-- name: move_waiting
-- What waits is looked for under the new id.
update waiting set conversation_id = $2 where conversation_id = $1;

-- name: copy_hold
-- What is on legal hold stays so, wherever it goes.
insert into holds (conversation_id, reason)
select $2, reason from holds where conversation_id = $1
on conflict do nothing;

-- name: note_move
-- So that what comes late under the old id is known.
insert into moves (conversation_id, platform_conversation_id) values ($1, $2) on conflict do nothing;

-- name: moved_to
-- The platform's new id of a conversation, if it has one.
select platform_conversation_id from moves where conversation_id = $1;

-- name: follow_conversation
-- The new id is in use already: the old sessions stay where they are, send to the new id, and precede the first one there.
-- What the agent remembers stays the old owner's. A session that is older than all of them has none before it.
-- As in a move, a turn that runs is taken away, and the platform's ids of messages mean others there.
with moved as (
  update sessions
  set platform_conversation_id = $3,
    metadata = jsonb_build_object('resource', platform || ':' || account || ':' || platform_conversation_id) || metadata
      - 'preview'
  where conversation_id = $1 and platform_conversation_id <> $3
  returning id
), turn as (
  update turns t
  set status = 'superseded', outcome = 'superseded', error = 'the conversation moved', finished_at = clock_timestamp()
  from moved
  where t.conversation_id = $1 and t.session_id = moved.id and t.finished_at is null
), message as (
  update messages m
  set platform_message_id = null,
    metadata = case when m.direction = 'outbound' then m.metadata - 'reply_to' else m.metadata end
  from moved
  where m.conversation_id = $1 and m.session_id = moved.id
), held as materialized (
  select d.seq, d.part
  from deliveries d
  where d.conversation_id = $1 and d.status in ('pending', 'sending') and exists (select from moved)
  order by d.seq, d.part
  for update
), delivery as (
  update deliveries d
  set platform_message_id = null
  from held h
  where d.conversation_id = $1 and d.seq = h.seq and d.part = h.part
)
update sessions s
set parent_session_id = (select max(o.id::text)::uuid from sessions o where o.conversation_id = $1 and o.id < s.id)
where s.conversation_id = $2 and s.parent_session_id is null;
