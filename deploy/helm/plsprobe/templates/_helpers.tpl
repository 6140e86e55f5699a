{{- define "plsprobe.labels" -}}
app.kubernetes.io/name: plsprobe
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "plsprobe.selector" -}}
app.kubernetes.io/name: plsprobe
{{- end }}

{{- define "plsprobe.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A health check of this path. The agent listens on 127.0.0.1, which on the node's network is the kubelet's too. */}}
{{- define "plsprobe.check" -}}
httpGet:
  path: {{ . }}
  port: metrics
  host: 127.0.0.1
{{- end }}
