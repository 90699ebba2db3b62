-- name: rotate
-- Close a session and open its successor. What arrived meanwhile moves along. Run in the transaction of `complete`.
with moved as (
  update messages
  set session_id = $4
  where conversation_id = $1 and session_id = $2 and seq > $3 and direction = 'inbound'
  returning seq
), before as (
  select pending_since, last_inbound_seq from sessions where conversation_id = $1 and id = $2
), old as (
  update sessions
  set status = 'closed', pending_since = null, last_inbound_seq = least(last_inbound_seq, $3),
    message_count = message_count - (select count(*) from moved)
  where conversation_id = $1 and id = $2 and status = 'active'
  returning *
)
insert into sessions (
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, mode, parent_session_id,
  next_seq, answered_seq, last_inbound_seq, pending_since, error_told_at, message_count
)
select
  o.conversation_id, $4, o.platform, o.account, o.platform_conversation_id, o.thread, o.user_id, o.mode, o.id,
  o.next_seq, $3, b.last_inbound_seq, b.pending_since, o.error_told_at, (select count(*) from moved)
from old o, before b
returning id;

-- name: close_session
-- Close a session for good; the next message opens another. What waits in it is still answered.
update sessions
set status = 'closed'
where id = $1 and status = 'active'
returning conversation_id;

-- name: get_session
select
  conversation_id, id, platform, account, platform_conversation_id, thread, user_id, status, mode, created_at,
  last_activity, parent_session_id, message_count, answered_seq, last_inbound_seq, pending_since, metadata
from sessions
where id = $1;

-- name: active_session
-- For /status: the active session of a conversation.
select id, created_at, message_count from sessions where conversation_id = $1 and status = 'active';

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
