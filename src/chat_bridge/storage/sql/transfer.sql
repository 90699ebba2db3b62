-- name: lock_history
-- Hold all sessions of these conversations, in the order in which every statement locks. `resting`: an import made it,
-- and no message has come since.
select conversation_id, id, created_at, next_seq, status, metadata ? 'imported' as imported,
  metadata ? 'imported' and last_inbound_seq = 0 as resting
from sessions
where conversation_id = any ($1::uuid[])
order by conversation_id, id
for update;

-- name: sessions_elsewhere
-- Which of these sessions ($1) are in another conversation ($2) than the import thinks, or in an archive.
select i.id, s.conversation_id = i.conversation_id as archived
from unnest($1::uuid[], $2::uuid[]) as i (id, conversation_id)
join sessions s on s.id = i.id and (s.conversation_id <> i.conversation_id or s.status = 'archived');

-- name: find_history
-- Messages by their event keys; `ord` is the place among the arguments. `shown_text`: as an export has it, if that differs.
select i.ord, m.session_id, m.seq, m.direction, m.content_type, m.content_text, m.created_at, m.sender_id,
  case when m.metadata -> 'versions' -> -1 ? 'deleted' then ''
    else coalesce(m.metadata -> 'versions' -> -1 ->> 'text', m.metadata ->> 'raw_text') end as shown_text
from unnest($1::uuid[], $2::text[]) with ordinality as i (conversation_id, event_key, ord)
join messages m on m.conversation_id = i.conversation_id and m.event_key = i.event_key;

-- name: find_history_by_id
-- The same by their ids, in these conversations: the agent's replies have no event keys.
select m.conversation_id, m.id,
  m.session_id, m.seq, m.direction, m.content_type, m.content_text, m.created_at, m.sender_id,
  case when m.metadata -> 'versions' -> -1 ? 'deleted' then ''
    else coalesce(m.metadata -> 'versions' -> -1 ->> 'text', m.metadata ->> 'raw_text') end as shown_text
from messages m
where m.conversation_id = any ($1::uuid[]) and m.id = any ($2::uuid[]);

-- name: extend_sessions
-- Count messages that are added to sessions, or only (0) keep their next seq behind them. Run after `lock_history`.
-- What a session waits for stays as it is: added messages are final, and a claim passes them over.
update sessions s
set next_seq = greatest(s.next_seq, i.next_seq),
  message_count = s.message_count + i.added,
  last_activity = greatest(s.last_activity, i.last_activity),
  status = case when i.closes then 'closed' else s.status end
from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::boolean[])
  as i (conversation_id, id, next_seq, added, last_activity, closes)
where s.conversation_id = i.conversation_id and s.id = i.id;

-- name: keep_people
-- Remember who wrote, where nothing newer is known.
insert into users (platform, account, platform_user_id, display_name, first_seen, last_seen)
select i.platform, i.account, i.id, i.name, i.seen, i.seen
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) as i (platform, account, id, name, seen)
order by i.platform, i.account, i.id
on conflict do nothing;

-- name: messages_of_session
-- The messages of a session after a seq, oldest first, with the names of those who wrote. `archived`: an archive has some
-- of them, as in `history_before`.
select h.*, a.archived
from (
  select min(p.last_seq) as archived
  from archived_sessions p
  where p.conversation_id = $1 and p.session_id = $2 and p.last_seq > $3
) a
left join (
  select
    m.seq, m.id, m.direction, m.content_type, m.content_text, m.event_key, m.sender_id, u.display_name, m.created_at,
    m.sent_at, m.platform_message_id, m.agent_request_id, m.attachments, m.metadata,
    case
      when m.status <> 'accepted' then m.status
      when s.pending_since is not null and m.seq > s.answered_seq then 'pending'
      else 'answered'
    end as status
  from sessions s
  join messages m on m.conversation_id = s.conversation_id and m.session_id = s.id
  left join users u on u.platform = s.platform and u.account = s.account and u.platform_user_id = m.sender_id
  where s.conversation_id = $1 and s.id = $2 and m.seq > $3
  order by m.seq
  limit $4
) h on true;
