-- name: list_dead_letters
-- Replies that were given up or may not have arrived, and messages that got no answer; newest first. $1, $2 and $3 are
-- the place after which to go on.
select *
from (
  (
    select 'reply' as kind, d.next_attempt_at as died_at, m.id, d.part, d.status, d.attempts, d.error as reason,
      d.conversation_id, s.platform, s.account, s.platform_conversation_id, s.thread
    from deliveries d
    join messages m on m.conversation_id = d.conversation_id and m.seq = d.seq
    join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
    where d.status in ('unknown', 'failed') and d.next_attempt_at <= $1
      and (d.next_attempt_at, m.id, d.part) < ($1, $2::uuid, $3::smallint)
      and ($4::text is null or s.platform = $4)
    order by d.next_attempt_at desc, m.id desc, d.part desc
    limit $5
  )
  union all
  (
    select 'message', m.created_at, m.id, 0::smallint, m.status, 0, m.metadata ->> 'reason',
      m.conversation_id, s.platform, s.account, s.platform_conversation_id, s.thread
    from messages m
    join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
    where m.status = 'failed' and m.created_at <= $1 and (m.created_at, m.id, 0) < ($1, $2::uuid, $3::integer)
      and ($4::text is null or s.platform = $4) and not coalesce(m.metadata ?| '{purged,replayed_as}', false)
    order by m.created_at desc, m.id desc
    limit $5
  )
) letters
order by died_at desc, id desc, part desc
limit $5;

-- name: retry_deliveries
-- Send the parts of a reply again that were given up or may not have arrived, as if for the first time.
update deliveries d
set status = 'pending', failures = 0, next_attempt_at = clock_timestamp(),
  give_up_at = clock_timestamp() + interval '24 hours'
from messages m
where m.id = $1 and m.direction = 'outbound' and d.conversation_id = m.conversation_id and d.seq = m.seq
  and d.status in ('unknown', 'failed')
returning d.part;

-- name: purge_deliveries
-- Lay the dead parts of a reply aside for good. The rows stay, for its story.
update deliveries d
set status = 'purged'
from messages m
where m.id = $1 and m.direction = 'outbound' and d.conversation_id = m.conversation_id and d.seq = m.seq
  and d.status in ('unknown', 'failed')
returning d.part;

-- name: failed_message
-- A message that got no answer, with what is needed to receive it once more.
select m.seq, m.content_text, m.content_type, m.sender_id, m.platform_message_id, m.attachments, m.metadata, m.sent_at,
  m.conversation_id, m.created_at, s.platform, s.account, s.platform_conversation_id, s.thread,
  u.display_name, m.id
from messages m
join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
left join users u on u.platform = s.platform and u.account = s.account and u.platform_user_id = m.sender_id
where m.id = $1 and m.direction = 'inbound' and m.status = 'failed'
  and not coalesce(m.metadata ?| '{purged,replayed_as}', false);

-- name: note_on_failed
-- Note what became of a message that got no answer.
update messages
set metadata = coalesce(metadata, '{}') || $2::jsonb
where id = $1 and direction = 'inbound' and status = 'failed'
  and not coalesce(metadata ?| '{purged,replayed_as}', false)
returning id;
